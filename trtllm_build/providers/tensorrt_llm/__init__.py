"""TensorRT-LLM's fused mixture-of-experts kernels, by way of the sources that flashinfer ships.

``build`` compiles them without a GPU, ``layout`` turns a checkpoint's experts into what they read, ``library`` calls
them, ``check`` compares the two on a GPU.
"""
