"""``make demo``: config -> trained model -> engine bundle -> Triton server -> streamed, checked answers."""
