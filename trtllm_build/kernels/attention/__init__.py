"""Triton kernels of attention: over pages, merged, appended to, per head."""
