"""TensorRT-RTX: the lowered graph compiled for one GPU, here, and run there."""
