"""The pieces that the build compiled ahead of time, against the functions they were compiled from."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch

from nemo_diffgemma.architecture import GLOBAL
from tests.support import random_checkpoint, small_architecture
from trtllm_build.backends import aot
from trtllm_build.backends.torch_cpu import TorchCpu
from trtllm_build.bundle import Bundle
from trtllm_build.contract import SUB
from trtllm_build.measure import choose
from trtllm_build.network.pieces import PIECES, Pieces, eager_pieces
from trtllm_build.network.weights import NetworkWeights
from trtllm_build.pipeline import build
from trtllm_build.plan import make_plan
from trtllm_build.spec import PIECES as FOLDER

pytestmark = pytest.mark.skipif(aot.compiler() is None, reason="no C++ compiler: the build runs everything eagerly")


@pytest.fixture(scope="module")
def bundle(demo_bundle: Path) -> Bundle:
    return Bundle.open(demo_bundle)


@pytest.fixture(scope="module")
def weights(bundle: Bundle) -> NetworkWeights:
    return TorchCpu.weights(bundle.spec)


@pytest.fixture(scope="module")
def compiled(bundle: Bundle) -> Pieces:
    return aot.load_pieces(bundle.spec.arch, bundle.directory / FOLDER)


def test_loading_leaves_nothing_behind(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where pieces are unpacked; a process that is killed removes nothing."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    pieces = aot.load_pieces(bundle.spec.arch, bundle.directory / FOLDER)
    assert list(tmp_path.iterdir()) == []
    assert os.environ["TMPDIR"] == str(tmp_path)
    assert pieces.statistics(torch.randn(6, 3, SUB), torch.tensor(1.0), torch.zeros(6))


@pytest.mark.parametrize("rows", [1, 2, 7, 16, 300])
@pytest.mark.parametrize("name", PIECES)
def test_every_piece_computes_what_it_was_compiled_from(
    bundle: Bundle, weights: NetworkWeights, compiled: Pieces, name: str, rows: int
) -> None:
    (example,) = (e for e in aot.examples(bundle.spec.arch, weights) if e.name == name)
    g = torch.Generator().manual_seed(rows)
    moving = [torch.randn(rows, *t.shape[1:], generator=g) if t.dim() else t + 0.7 for t in example.moving]
    expected = getattr(eager_pieces(bundle.spec.arch), name)(*moving, *example.weights)
    found = getattr(compiled, name)(*moving, *example.weights)
    assert len(found) == len(expected)
    for f, e in zip(found, expected, strict=True):
        assert f.dtype == e.dtype
        torch.testing.assert_close(f, e, atol=1e-4, rtol=1e-5)


def test_a_wrong_stride_shape_or_type_is_an_error_not_garbage(bundle: Bundle, compiled: Pieces) -> None:
    good = [torch.randn(6, 3, SUB), torch.tensor(1.0), torch.zeros(6)]
    compiled.statistics(*good)
    wrong = [
        torch.randn(6, SUB, 3).transpose(1, 2),
        torch.randn(6, 3, SUB // 2),
        torch.randn(6, 3, SUB).double(),
    ]
    for products in wrong:
        with pytest.raises(RuntimeError):
            compiled.statistics(products, *good[1:])


def test_the_manifest_says_what_was_measured_and_chosen(bundle: Bundle) -> None:
    timings = bundle.manifest["measured"]["denoising_step"]
    assert {(t["pieces"], t["threads"]) for t in timings} >= {("eager", 1), ("compiled", 1)}
    best = choose(timings)
    assert bundle.manifest["runtime"] == {"pieces": best["pieces"], "threads": best["threads"]}


def test_more_threads_must_repay() -> None:
    def timing(pieces: str, threads: int, ms: float) -> dict[str, object]:
        return {"pieces": pieces, "threads": threads, "ms": ms}

    one, slow, two = timing("compiled", 1, 2.0), timing("eager", 1, 3.0), timing("compiled", 2, 1.6)
    assert choose([slow, two, one]) == one
    assert choose([slow, one, fast := timing("eager", 2, 1.4)]) == fast
    assert choose([slow]) == slow


def test_threads_wait_while_a_build_times_them_as_they_do_when_served() -> None:
    code = """
import os, sys
from trtllm_build.cli import main
assert "torch" not in sys.modules  # which reads it once
try:
    main(["inspect", "/nowhere"])
except SystemExit:
    print(os.environ["OMP_WAIT_POLICY"])
"""
    clean = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=clean)
    assert done.stdout == "PASSIVE\n"


def test_without_a_compiler_the_build_says_so_and_runs_eagerly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    checkpoint = random_checkpoint(tmp_path / "checkpoint", small_architecture())
    lines: list[str] = []
    manifest = build(make_plan([f"checkpoint={checkpoint}", f"out={tmp_path / 'engine'}"]), lines.append)
    assert manifest["runtime"]["pieces"] == "eager"
    assert any("no C++ compiler found (g++, or $CXX): every piece runs eagerly" in line for line in lines)


def test_large_float32_products_stay_with_the_faster_library(weights: NetworkWeights) -> None:
    arch = small_architecture(hidden_size=1024, intermediate_size=512, num_hidden_layers=1, layer_types=(GLOBAL,))
    large = torch.zeros(512, 1024)
    layer = dataclasses.replace(
        weights.layers[-1], gate_proj=large, up_proj=large, down_proj=large.T.contiguous(), o_proj=large.T.contiguous()
    )
    examples = {e.name: e for e in aot.examples(arch, dataclasses.replace(weights, layers=(layer,)))}
    assert not aot.is_compiled(examples["before_experts_global"])
    assert aot.is_compiled(examples["after_experts"])
