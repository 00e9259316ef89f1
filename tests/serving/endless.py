"""A request that would run for days."""

from typing import Any

# Inputs of :meth:`triton_repo.client.client.Client.generate`; a draft of every step says that it runs.
ENDLESS: dict[str, Any] = {"max_tokens": 200, "ignore_eos": True, "max_denoising_steps": 2**31 - 1, "drafts": True}
