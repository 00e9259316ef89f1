"""Providers are chosen by what they compute before how fast they do it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from nemo_diffgemma.architecture import GLOBAL, SLIDING
from nemo_diffgemma.checkpoint import Checkpoint
from tests.support import random_checkpoint, small_architecture
from trtllm_build.backends.cuda import ops
from trtllm_build.backends.cuda.cache import DeviceCache
from trtllm_build.backends.cuda.device_weights import from_checkpoint
from trtllm_build.backends.cuda.network import DeviceNetwork
from trtllm_build.backends.cuda.ops import Choice, Provider, chosen_ops, reference, reference_ops
from trtllm_build.backends.cuda.static_experts import StaticExperts, pack_layers
from trtllm_build.bundle import Bundle
from trtllm_build.compilers.cuda.compile import execute
from trtllm_build.compilers.cuda.probes import Probe, probes
from trtllm_build.compilers.cuda.tune import distance, tune
from trtllm_build.kernels.linear import TILES
from trtllm_build.pipeline import build
from trtllm_build.plan import make_plan
from trtllm_build.providers.tensorrt_llm.layout import reference as packed_reference
from trtllm_build.quantization.recipe import named_recipe

ARCH = small_architecture(num_hidden_layers=2, layer_types=(SLIDING, GLOBAL), max_position_embeddings=64)


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> DeviceNetwork:
    checkpoint = Checkpoint(random_checkpoint(tmp_path_factory.mktemp("model") / "checkpoint", ARCH))
    weights = from_checkpoint(checkpoint, named_recipe("fp8"), torch.device("cpu"))
    return DeviceNetwork(ARCH, weights, reference_ops())


@pytest.fixture
def linear(network: DeviceNetwork) -> list[Probe]:
    return [p for p in probes(network) if p.op == "linear"]


def providers(monkeypatch: pytest.MonkeyPatch, **others: ops.Op) -> None:
    monkeypatch.setitem(ops.OTHERS, "linear", others)
    monkeypatch.setitem(ops.CUTS, "linear", {"tile": TILES[:1]})


def one_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of each operation, only the first cut of our own kernel."""
    for name, cuts in ops.CUTS.items():
        monkeypatch.setitem(ops.CUTS, name, {argument: found[:1] for argument, found in cuts.items()})


def test_every_probe_accepts_its_own_reference(network: DeviceNetwork) -> None:
    for probe in probes(network):
        alone = probe.run(reference(probe.op), 1, probe.layers)
        beside = probe.run(reference(probe.op), 2, probe.layers)
        assert alone
        assert all(len(b) == 2 * len(a) for a, b in zip(alone, beside, strict=True)), probe.op
        assert all(
            torch.allclose(a.float(), b[: len(a)].float(), atol=0.05) for a, b in zip(alone, beside, strict=True)
        )


def test_what_is_wrong_is_not_used_however_fast(linear: list[Probe], monkeypatch: pytest.MonkeyPatch) -> None:
    right = reference("linear")

    def instant_nonsense(x: ops.Any, weight: ops.Any, dtype: torch.dtype) -> torch.Tensor:
        rows, columns = len(x.values), len(weight.values)
        return torch.zeros(rows, columns, dtype=dtype)

    def not_for_this_machine(*_: ops.Any) -> torch.Tensor:
        raise RuntimeError("no kernel image is available")

    def swayed_by_company(x: ops.Any, weight: ops.Any, dtype: torch.dtype) -> torch.Tensor:
        return right(x, weight, dtype) * (1 + 2**-7 * (len(x.values) > ARCH.canvas_length))

    wrong = {"nonsense": instant_nonsense, "absent": not_for_this_machine, "swayed": swayed_by_company}
    providers(monkeypatch, plain=right, **wrong)
    lines: list[str] = []
    chosen, trials = tune(linear, lines.append)
    found = {t.choice.provider: t for t in trials}
    assert chosen["linear"].provider in ("plain", "triton")
    assert found["plain"].usable
    assert found["triton"].usable
    assert not any(found[name].usable for name in wrong)
    assert found["nonsense"].error == 1
    assert found["absent"].failure == "RuntimeError: no kernel image is available"
    assert found["swayed"].alone is False
    assert any("nonsense" in line and "not used: wrong" in line for line in lines)
    assert any("swayed" in line and "not used: differs in company" in line for line in lines)


def test_nothing_right_is_an_error(linear: list[Probe], monkeypatch: pytest.MonkeyPatch) -> None:
    providers(monkeypatch, half=lambda x, w, dtype: reference("linear")(x, w, dtype) / 2)
    monkeypatch.setitem(ops.CUTS, "linear", {})
    with pytest.raises(RuntimeError, match="no provider of linear is right on this device: .*'half'"):
        tune(linear, lambda line: None)


def test_choices_survive_the_manifest(network: DeviceNetwork) -> None:
    choices = {"linear": Choice("triton", {"tile": TILES[2]}), "experts": Choice("torch", {})}
    found = chosen_ops({"ops": {name: choice.as_dict() for name, choice in choices.items()}})
    assert found.linear.keywords == {"tile": TILES[2]}  # type: ignore[attr-defined]
    assert found.experts is ops.OTHERS["experts"]["torch"]
    assert found.rms_norm.func is not None  # type: ignore[attr-defined]


def test_a_provider_with_static_scales_reads_plain_rows_and_packs_the_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one_cut(monkeypatch)
    checkpoint = Checkpoint(random_checkpoint(tmp_path / "checkpoint", ARCH))
    weights = from_checkpoint(checkpoint, named_recipe("fp8_static"), torch.device("cpu"))
    scales = {f"layer_00{i}.{p}": 8 / 448 for i in range(3) for p in ("experts_gate_up", "experts_down")}
    dynamic = DeviceNetwork(ARCH, weights, reference_ops())
    (probe,) = [p for p in probes(dynamic) if p.op == "experts"]
    expected = probe.run(reference("experts"), 1, probe.layers)
    static = StaticExperts(pack_layers(weights, scales, in_place=False), packed_reference)
    _, trials = tune([probe], lambda line: None, {"experts": {"tensorrt_llm": Provider(static, static)}})
    (trial,) = [t for t in trials if t.choice.provider == "tensorrt_llm"]
    assert trial.usable
    assert trial.error == 0
    found = probe.run(static, 1, probe.layers)
    # other scales, other roundings, the same experts
    assert all(0 < distance(a, b) < 0.1 for a, b in zip(found, expected, strict=True))
    in_place = StaticExperts(pack_layers(weights, scales, in_place=True), packed_reference)
    again = probe.run(in_place, 1, probe.layers)
    assert all(torch.equal(a, b) for a, b in zip(found, again, strict=True))
    network = DeviceNetwork(ARCH, weights, replace(reference_ops(), experts=in_place))
    cache = DeviceCache(ARCH, network.dtype, torch.device("cpu"), 1, 1, 64, 8)
    slot, count = torch.zeros(1, dtype=torch.int32), torch.full((1,), 8, dtype=torch.int32)
    soft = torch.zeros(1, 8, ARCH.hidden_size, dtype=network.dtype)
    assert network.denoise(torch.arange(8)[None], soft, slot, count, cache).isfinite().all()


def test_what_a_build_does_on_its_gpu_runs_from_end_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the CPU in the interpreter, with one cut of each operation: choice, parity, steps."""
    checkpoint = random_checkpoint(tmp_path / "checkpoint", ARCH)
    given = ["gpu=h100", f"checkpoint={checkpoint}", f"out={tmp_path / 'out'}", "gpu.limits.slots=2"]
    build(make_plan([*given, "gpu.limits.context=64"]), lambda line: None)
    one_cut(monkeypatch)
    spec = Bundle.open(tmp_path / "out", elsewhere=True).spec
    lines: list[str] = []
    runtime, figures = execute(spec, "fp8", torch.device("cpu"), lines.append)
    assert set(runtime["ops"]) == set(ops.CUTS)
    assert figures["device_parity"]["mean_relative"] < 0.5
    assert [step["canvases"] for step in figures["denoising_step"]] == [1, 2]
    assert all(step["ms"] > 0 for step in figures["denoising_step"])
    assert set(figures["providers"]) == set(ops.CUTS)
    assert any(line.startswith("verify   on cpu") for line in lines)
    assert chosen_ops(runtime)
