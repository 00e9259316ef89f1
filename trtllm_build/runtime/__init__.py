"""The running engine: requests in, blocks of tokens out."""
