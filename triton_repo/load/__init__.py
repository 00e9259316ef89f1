"""What ``diffgemma bench`` is made of: prompts, arrivals, the driver, and what is made of its records."""
