"""What a build does for TensorRT-RTX: lower, check, compile the engine file."""
