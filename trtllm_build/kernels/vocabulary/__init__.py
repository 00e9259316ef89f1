"""Triton kernels of the pass over the vocabulary: logits, statistics, samples, expected embeddings."""
