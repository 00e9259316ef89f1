"""What a build does for the CUDA backend: judge on the CPU, and tune on the GPU."""
