"""Shards are written a tensor at a time, and read back by safetensors as they were."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open

from nemo_diffgemma.checkpoint import INDEX, Checkpoint
from nemo_diffgemma.errors import FieldError
from tests.support import random_checkpoint, small_architecture
from trtllm_build.quantization.shards import DTYPES, ShardEntry, write_shards
from trtllm_build.quantization.unified import write_unified

shapes = st.lists(st.integers(1, 5), max_size=3).map(tuple)


@given(
    kinds=st.lists(st.tuples(st.sampled_from(list(DTYPES)), shapes), min_size=1, max_size=8), limit=st.integers(1, 400)
)
def test_shards_read_back(
    tmp_path_factory: pytest.TempPathFactory, kinds: list[tuple[torch.dtype, tuple[int, ...]]], limit: int
) -> None:
    directory = tmp_path_factory.mktemp("shards")
    tensors = {f"t{i}": torch.randn(shape).to(dtype) for i, (dtype, shape) in enumerate(kinds)}
    entries = [ShardEntry(name, DTYPES[t.dtype], tuple(t.shape)) for name, t in tensors.items()]
    write_shards(directory, entries, tensors.items(), limit, lambda line: None)
    index = json.loads((directory / INDEX).read_text())
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in tensors.values())
    for name, wanted in tensors.items():
        with safe_open(directory / index["weight_map"][name], "pt") as file:
            found = file.get_tensor(name)
        assert found.dtype == wanted.dtype
        assert torch.equal(found.float(), wanted.float())


@pytest.mark.parametrize("quantized", [(), ("experts", "router")])
def test_classes_that_cannot_be_quantised(quantized: tuple[str, ...], tmp_path: Path) -> None:
    checkpoint = Checkpoint(random_checkpoint(tmp_path / "source", small_architecture()))
    with pytest.raises(FieldError, match=r"quantized: .* one or more of attention, mlp, experts; fix:"):
        write_unified(checkpoint, tmp_path / "out", print, quantized)
    assert not (tmp_path / "out").exists()


def test_the_checkpoint_is_not_written_over_itself(tmp_path: Path) -> None:
    checkpoint = Checkpoint(random_checkpoint(tmp_path / "source", small_architecture()))
    with pytest.raises(FieldError, match=r"directory: .*source' cannot be used; allowed: any but the checkpoint's own"):
        write_unified(checkpoint, tmp_path / "other" / ".." / "source", print)
    Checkpoint(tmp_path / "source")
