"""A request that runs much longer than any test waits."""

from typing import Any

# Inputs of :meth:`triton_repo.client.client.Client.generate`; a draft of every step says that it runs.
ENDLESS: dict[str, Any] = {"max_tokens": 200, "ignore_eos": True, "max_denoising_steps": 1024, "drafts": True}
