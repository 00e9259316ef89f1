"""Running engines."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from trtllm_build import Engine, load_engine
from trtllm_build.backends import load_backend
from trtllm_build.bundle import Bundle


@pytest.fixture(scope="module")
def engine(demo_bundle: Path) -> Iterator[Engine]:
    engine = load_engine(demo_bundle)
    yield engine
    engine.close()


@pytest.fixture
def small(demo_bundle: Path) -> Iterator[Callable[..., Engine]]:
    """Makes engines of the same bundle with other limits."""
    made: list[Engine] = []

    def make(**limits: int) -> Engine:
        spec = Bundle.open(demo_bundle).spec
        spec = replace(spec, limits=replace(spec.limits, **limits))
        made.append(Engine(spec, load_backend(spec)))
        return made[-1]

    yield make
    for engine in made:
        engine.close()
