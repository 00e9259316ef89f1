"""Kernels of others for single steps of the network: measured and checked, and used only where they win."""
