"""The engine on an NVIDIA GPU: our kernels (or others that are quicker there), one CUDA graph a shape of call.

The same code runs on a CPU with the kernels' references in place of kernels: so a build without a GPU can say what the
quantised engine answers.
"""
