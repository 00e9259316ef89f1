"""Settings that the tests with random requests share."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings


def fuzzing(variable: str, few: int) -> settings:
    """As many examples as the environment's ``variable`` says; ``few``, and always the same, without it."""
    examples = int(os.environ.get(variable, few))
    return settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=examples == few,
        suppress_health_check=list(HealthCheck),
    )
