"""What hostile clients send to Triton's own ports: `python -m tests.cases.triton`."""
