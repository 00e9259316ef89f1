"""Clients of OpenAI's API as their users install them, on docs/clients.md: `python -m tests.clients`."""
