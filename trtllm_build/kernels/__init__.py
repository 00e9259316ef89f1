"""Triton kernels of the CUDA backend, one operation per file, each beside its reference in plain torch.

Every file gives ``operation(...)``, which launches the kernel; ``operation_reference(...)``, the same in torch on any
device, by which it is judged; and ``cases(arch)``, which :mod:`trtllm_build.kernels.machine_code` compiles without
a GPU.
"""
