"""The model: what it is, how it lies on disk, how it denoises, how it is trained."""
