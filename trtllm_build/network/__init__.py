"""The network for inference: one copy of the weights, two phases (encode, denoise), plain tensors in and out."""
