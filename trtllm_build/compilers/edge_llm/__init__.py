"""What a build does for NVIDIA TensorRT Edge-LLM: export, and check what was exported."""
