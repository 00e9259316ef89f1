"""The model: what it is (`architecture`), how it lies on disk (`checkpoint`), how it denoises (`diffusion`), how it is trained (`training`)."""
