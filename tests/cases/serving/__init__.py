"""What clients send to OpenAI's API: a folder of bodies, and what is right for each: `python -m tests.cases.serving`."""
