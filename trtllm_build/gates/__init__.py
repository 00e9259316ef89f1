"""What decides whether an engine may be written: parity with transformers, and what a precision costs."""
