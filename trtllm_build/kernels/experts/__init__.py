"""Triton kernels of the experts: routed, sorted, multiplied in groups."""
