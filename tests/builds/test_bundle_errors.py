"""What is wrong with a checkpoint, a plan or a bundle is said before anything runs: field, value, allowed, fix."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from nemo_diffgemma.checkpoint import Checkpoint
from nemo_diffgemma.errors import FieldError
from nemo_diffgemma.tokenizer import Tokenizer
from tests.support import random_checkpoint, small_architecture
from trtllm_build import load_engine
from trtllm_build.bundle import Bundle, manifest_hash
from trtllm_build.pipeline import build, quantize
from trtllm_build.plan import make_plan
from trtllm_build.wait import wait_for_bundle

SHARD = "model-00001-of-00001.safetensors"


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return random_checkpoint(tmp_path / "checkpoint", small_architecture())


@pytest.fixture
def bundle(demo_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(demo_bundle, tmp_path / "bundle"))


def rewrite(checkpoint: Path, change) -> None:
    """Change the tensors of a checkpoint and keep its index in step."""
    tensors = load_file(checkpoint / SHARD)
    change(tensors)
    save_file(tensors, checkpoint / SHARD)
    index = {"metadata": {}, "weight_map": dict.fromkeys(tensors, SHARD)}
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps(index))


def plan_error(*overrides: str) -> FieldError:
    with pytest.raises(FieldError) as caught:
        make_plan(list(overrides))
    return caught.value


# -- checkpoints -----------------------------------------------------------------------


def test_checkpoint_that_is_not_there(tmp_path: Path) -> None:
    error = plan_error("gpu=cpu", f"checkpoint={tmp_path / 'none'}")
    assert error.field == "checkpoint"
    assert "a directory with a config.json" in error.allowed
    assert "`make train` writes one" in error.fix


def test_checkpoint_with_a_missing_tensor(checkpoint: Path) -> None:
    rewrite(checkpoint, lambda t: t.pop("model.encoder.language_model.layers.1.layer_scalar"))
    with pytest.raises(FieldError, match=r"missing tensor: 'model.encoder.language_model.layers.1.layer_scalar'"):
        Checkpoint(checkpoint)


def test_checkpoint_with_an_extra_tensor(checkpoint: Path) -> None:
    rewrite(checkpoint, lambda t: t.update({"model.decoder.layers.2.self_attn.v_proj.weight": torch.ones(16, 32)}))
    with pytest.raises(FieldError, match=r"extra tensor: 'model.decoder.layers.2.self_attn.v_proj.weight'"):
        Checkpoint(checkpoint)


def test_checkpoint_with_a_tensor_of_the_wrong_shape(checkpoint: Path) -> None:
    rewrite(checkpoint, lambda t: t.update({"model.decoder.norm.weight": torch.ones(33)}))
    with pytest.raises(FieldError, match=r"shape of model.decoder.norm.weight: \[33\] cannot be used; allowed: \[32\]"):
        Checkpoint(checkpoint)


def test_truncated_checkpoint(checkpoint: Path) -> None:
    data = (checkpoint / SHARD).read_bytes()
    (checkpoint / SHARD).write_bytes(data[:-100])
    with pytest.raises(FieldError, match=rf"checkpoint:{SHARD}: '{len(data) - 100} bytes: .*allowed: a whole"):
        Checkpoint(checkpoint)
    (checkpoint / SHARD).write_bytes(data[:5])
    with pytest.raises(FieldError, match="allowed: a whole safetensors file; fix: download or export"):
        Checkpoint(checkpoint)


def test_missing_shard(checkpoint: Path) -> None:
    (checkpoint / SHARD).unlink()
    with pytest.raises(FieldError, match=rf"checkpoint: '{SHARD}' cannot be used; allowed: every shard"):
        Checkpoint(checkpoint)


def test_nan_in_a_weight_stops_the_build(checkpoint: Path, tmp_path: Path) -> None:
    rewrite(checkpoint, lambda t: t["model.decoder.norm.weight"].fill_(float("nan")))
    with pytest.raises(FieldError, match="checkpoint:model.decoder.norm.weight: 'NaN or infinity'"):
        build(make_plan(["compile=false", f"checkpoint={checkpoint}", f"out={tmp_path / 'out'}"]), lambda line: None)
    assert not (tmp_path / "out").exists()


def test_config_of_another_model(checkpoint: Path) -> None:
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps(config | {"model_type": "gemma4"}))
    with pytest.raises(FieldError, match="config.json:model_type: 'gemma4' cannot be used; allowed: 'diffusion_gemma'"):
        Checkpoint(checkpoint)
    (checkpoint / "config.json").write_text("{")
    with pytest.raises(FieldError, match=r"config.json: .* allowed: a JSON object"):
        Checkpoint(checkpoint)


# -- plans -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "text"),
    [
        (["gpu=b300"], "gpu: 'b300' cannot be used; allowed: cpu, dgx_spark, h100, h200, rtx5090"),
        (["gpu=cpu", "backend=edge_llm"], "backend: 'edge_llm' cannot be used; allowed: torch_cpu for gpu=cpu"),
        (
            ["gpu=dgx-spark", "backend=edge_llm", "precision=fp8"],
            "precision: 'fp8' cannot be used; allowed: nvfp4, bf16 for gpu=dgx_spark backend=edge_llm",
        ),
        (["gpu=cpu", "precision=fp9"], "precision: 'fp9' cannot be used; allowed: bf16, fp32"),
        (["gpu=cpu", "gpu.limits.slot=3"], "gpu.limits.slot: '3' cannot be used; allowed: gpu.limits.slots"),
        (["gpu=cpu", "checkpont=x"], "checkpont: 'x' cannot be used; allowed: gpu, precision, backend, checkpoint"),
        (["gpu=cpu", "gpu.limits.slots=0"], "gpu.limits.slots: 0 cannot be used; allowed: an integer >= 1"),
        (["gpu=cpu", "gpu.limits.context=999"], "at most 256, the model's max_position_embeddings"),
        (["gpu.limits.slots=1000000000"], "gpu.limits.slots: 1000000000 cannot be used; allowed: an integer >= 1 (one"),
        (["gpu.limits.slots=true"], "gpu.limits.slots: True cannot be used; allowed: an integer >= 1"),
        (["gpu.limits.slots=8.0"], "fix: pass gpu.limits.slots=8"),
        (["gpu.limits.context=1"], "allowed: an integer >= 9 (a canvas of 8 and one token of a prompt), at most 256"),
        (["gpu.limits.context=8"], "gpu.limits.context: 8 cannot be used"),
        (["gpu.limits.context=-1"], "gpu.limits.context: -1 cannot be used"),
        (["gpu.limits.queue=0"], "gpu.limits.queue: 0 cannot be used; allowed: an integer >= 1"),
        (["gpu.limits.queue=1000000000000000000"], "at most 1000000, requests that wait with their prompts"),
        (["gpu.limits.cache_tokens=8"], "gpu.limits.cache_tokens: 8 cannot be used; allowed: an integer >= 9"),
        (["gpu.limits.cache_tokens=1000000000000"], "GB of memory hold; or null"),
        (["gpu=h100", "gpu.limits.slots=1000000000"], "what the GPU's 80 GB of memory hold"),
        (["gpu=h100", "gpu.limits.cache_tokens=1000000000000"], "what the GPU's 80 GB of memory hold; or null"),
        (["gpu=h200", "gpu.limits.slots=9000000"], "gpu.limits"),
        (["gpu=dgx-spark", "gpu.limits.slots=9000000"], "what the GPU's 128 GB of memory hold, not"),
        (["gpu.limits=5"], "gpu.limits: '5' cannot be used; allowed: what gpu=cpu says, but for gpu.limits"),
        (["precision.quantize=5"], "precision.quantize: 5 cannot be used; allowed: a list of classes"),
        (["precision.quantize=null"], "precision.quantize: None cannot be used; allowed: a list of classes"),
        (["precision.keep=5"], "precision.keep: 5 cannot be used; allowed: an object of classes and reasons"),
        (["precision.name=x"], "precision.name: 'x' cannot be used; allowed: what precision says"),
        (["model=demo"], "model: 'demo' cannot be used; allowed: nothing without weights=random"),
        (["hydra.run.dir=x"], "hydra.run.dir: 'x' cannot be used; allowed: a key of this command"),
        ([f"out={'x' * 300}"], "allowed: a path of names of at most 200 bytes each"),
        ([f"held_out={'x' * 300}"], "allowed: a path of names of at most 255 bytes each"),
        (["fast"], "command line: 'fast' cannot be used; allowed: key=value"),
    ],
)
def test_bad_plans(checkpoint: Path, overrides: list[str], text: str) -> None:
    assert text in str(plan_error(f"checkpoint={checkpoint}", *overrides))


def test_the_least_limits_and_a_gpu_s_own_are_taken(checkpoint: Path) -> None:
    given = [f"checkpoint={checkpoint}", "gpu.limits.context=9", "gpu.limits.cache_tokens=9", "gpu.limits.slots=1"]
    assert make_plan(given).limits.context == 9
    for gpu in ("h100", "h200"):  # the released model's shapes
        assert make_plan([f"gpu={gpu}", "weights=random", "precision=bf16"]).limits.slots == 16


def test_the_command_line_prints_one_line_and_exits_2(checkpoint: Path) -> None:
    command = [sys.executable, "-m", "trtllm_build", "build", "gpu=rtx6090", f"checkpoint={checkpoint}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert [line for line in done.stderr.splitlines() if line.startswith("error: gpu: 'rtx6090'")]
    assert "Traceback" not in done.stderr


# -- bundles ---------------------------------------------------------------------------


def test_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(FieldError, match="engine: .* fix: run `make engine GPU=cpu`"):
        load_engine(tmp_path)


def test_damaged_file(bundle: Path) -> None:
    path = bundle / "weights" / "layer_001.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(FieldError, match=r"engine:weights/layer_001.safetensors: 'sha256 .*build it again with `make"):
        load_engine(bundle)
    path.write_bytes(bytes(data[:-8]))
    with pytest.raises(
        FieldError, match=rf"layer_001.safetensors: '{len(data) - 8} bytes'.*allowed: {len(data)} bytes"
    ):
        load_engine(bundle)
    path.unlink()
    with pytest.raises(FieldError, match="layer_001.safetensors: 'missing'"):
        load_engine(bundle)


def edit_manifest(bundle: Path, rehash: bool = True, **changes: object) -> None:
    manifest = json.loads((bundle / "manifest.json").read_text()) | changes
    if rehash:
        manifest["manifest_hash"] = manifest_hash(manifest)
    (bundle / "manifest.json").write_text(json.dumps(manifest))


def test_bundle_for_another_machine(bundle: Path) -> None:
    edit_manifest(bundle, hardware={"kind": "cuda", "name": "H100", "sm": 90})
    with pytest.raises(
        FieldError, match=r"engine:hardware: 'built for an H100 GPU \(SM 90\)'.*this machine has: no CUDA GPU"
    ):
        load_engine(bundle)
    edit_manifest(bundle, hardware={"kind": "cpu", "machine": "s390x", "system": "Linux", "features": []})
    with pytest.raises(FieldError, match="built for a s390x CPU under Linux.*fix: run `make engine GPU=cpu` here"):
        load_engine(bundle)


def test_bundle_of_another_contract_and_changed_manifest(bundle: Path) -> None:
    edit_manifest(bundle, contract=0)
    with pytest.raises(FieldError, match="engine:contract: 0 cannot be used; allowed: contract version 3"):
        load_engine(bundle)
    edit_manifest(bundle, contract=3, rehash=True)
    limits = json.loads((bundle / "manifest.json").read_text())["limits"]
    edit_manifest(bundle, rehash=False, limits=limits | {"slots": 1})
    with pytest.raises(FieldError, match="engine:manifest_hash"):
        load_engine(bundle)
    (bundle / "manifest.json").write_text("{}")
    with pytest.raises(FieldError, match=r"engine:manifest.json: .*a whole manifest"):
        load_engine(bundle)


GONE = object()


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("files", [], r"files: \[\] "),
        ("files", {}, "files: 'without architecture.json, sampler.json"),
        ("files", {"../../x": {"bytes": 1, "sha256": "0" * 64}}, "files"),
        ("files", {"architecture.json": 5}, "files.architecture.json: 5 "),
        ("files", {"architecture.json": {"bytes": "1", "sha256": "0" * 64}}, "files.architecture.json.bytes: '1' "),
        *((key, GONE, f"{key}: None .*with this key") for key in ("remaining", "runtime", "verified", "files", "gpu")),
        *((key, GONE, f"{key}: None .*with this key") for key in ("limits", "hardware", "precision", "checkpoint")),
        *((key, GONE, f"{key}: None .*with this key") for key in ("backend", "manifest_hash")),
        *((key, 5, f"{key}: 5 ") for key in ("remaining", "runtime", "verified", "gpu", "limits", "hardware")),
        *((key, None, f"{key}: None ") for key in ("precision", "checkpoint", "backend", "manifest_hash")),
        ("verified", "perhaps", "verified: 'perhaps' "),
        ("remaining", [{"a": [[[]]]}], "remaining.0: "),
        ("runtime", {}, "runtime.pieces: None .*with this key"),
        ("runtime", {"pieces": "eager"}, "runtime.threads: None .*with this key"),
        ("runtime", {"threads": 10**9}, "runtime.threads: 1000000000 "),
        ("runtime", {"threads": "2"}, "runtime.threads: '2' "),
        ("runtime", {"threads": 1, "pieces": "some"}, "runtime.pieces: 'some' "),
        ("hardware", {}, "hardware: "),
        ("hardware", {"kind": "tpu"}, "hardware: "),
        ("hardware", {"kind": "cpu"}, "hardware.machine: None "),
        ("limits", {"slots": 1}, "limits.context: None "),
    ],
)
def test_an_edited_manifest_is_refused_by_its_key(key: str, value: object, said: str, bundle: Path) -> None:
    path = bundle / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest.pop(key) if value is GONE else manifest.update({key: value})
    if isinstance(manifest.get("files"), dict):
        manifest["manifest_hash"] = manifest_hash(manifest) if key != "manifest_hash" else value
    if key == "manifest_hash" and value is GONE:
        del manifest["manifest_hash"]
    path.write_text(json.dumps(manifest))
    for open_it in (load_engine, lambda folder: wait_for_bundle(folder, "cpu", 0, print)):
        with pytest.raises(FieldError, match=rf"^engine:manifest.json:{said}.*build it again with `make") as caught:
            open_it(bundle)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "[]", "{", '{"contract": NaN}', '{"contract": 3, "contract": 3}', "[" * 100_000])
def test_what_is_no_manifest_is_refused(text: str, bundle: Path) -> None:
    (bundle / "manifest.json").write_text(text)
    with pytest.raises(FieldError, match=r"^engine:manifest.json"):
        load_engine(bundle)


@pytest.mark.parametrize("contract", [2, 4, "3", 3.0, True, None, [3]])
def test_a_manifest_of_another_contract_is_refused(contract: object, bundle: Path) -> None:
    edit_manifest(bundle, contract=contract)
    with pytest.raises(FieldError, match=r"^engine:contract: .*contract version 3, in manifest.json"):
        load_engine(bundle)


# -- builds ----------------------------------------------------------------------------


def test_same_inputs_same_manifest_hash_and_second_build_is_a_no_op(checkpoint: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    plans = [make_plan(["compile=false", f"checkpoint={checkpoint}", f"out={tmp_path / name}"]) for name in ("a", "b")]
    first, second = (build(plan, lines.append) for plan in plans)
    assert first["manifest_hash"] == second["manifest_hash"]
    before = (tmp_path / "a" / "manifest.json").stat().st_mtime_ns
    assert build(plans[0], lines.append) == first
    assert "up to date: nothing to do" in lines[-1]
    assert (tmp_path / "a" / "manifest.json").stat().st_mtime_ns == before


def test_a_stopped_build_takes_up_what_it_finished(checkpoint: Path, tmp_path: Path, monkeypatch) -> None:
    import trtllm_build.pipeline as pipeline

    plan = make_plan(["compile=false", f"checkpoint={checkpoint}", f"out={tmp_path / 'out'}"])

    def stopped(*_: object) -> None:
        quantize(*_)
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, "quantize", stopped)
    with pytest.raises(KeyboardInterrupt):
        build(plan, lambda line: None)
    monkeypatch.setattr(pipeline, "quantize", quantize)
    (work,) = tmp_path.glob(".out.*.partial")
    written = (work / "weights" / "head.safetensors").stat().st_ino
    lines: list[str] = []
    build(plan, lines.append)
    assert any(line.startswith("resume") for line in lines)
    assert (tmp_path / "out" / "weights" / "head.safetensors").stat().st_ino == written
    assert not work.exists()


def test_a_wrong_weight_is_caught_by_the_builds_own_check(checkpoint: Path, tmp_path: Path, monkeypatch) -> None:
    import trtllm_build.pipeline as pipeline

    def wrong(opened, recipe, folder: Path, note) -> None:
        quantize(opened, recipe, folder, note)
        # the first layer's: keys and values are normed, so the last two layers' encode scalars change nothing
        path = folder / "layer_000.safetensors"
        tensors = load_file(path)
        tensors["encode_scalar"] = tensors["denoise_scalar"].clone()
        save_file(tensors, path)

    monkeypatch.setattr(pipeline, "quantize", wrong)
    with pytest.raises(FieldError, match=r"engine:parity: .*mean_relative at most 0.0003 for fp32"):
        build(make_plan(["compile=false", f"checkpoint={checkpoint}", f"out={tmp_path / 'out'}"]), lambda line: None)
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_without_tokenizer_builds_and_only_text_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    build(make_plan(["compile=false", f"checkpoint={checkpoint}", f"out={tmp_path / 'out'}"]), lambda line: None)
    assert Bundle.open(tmp_path / "out").spec.tokenizer_directory is None
    engine = load_engine(tmp_path / "out")
    assert len(engine.generate([[3, 4]], max_tokens=5, max_denoising_steps=1, ignore_eos=True)[0].token_ids) == 5
    with pytest.raises(FieldError, match="prompt: 'hello' cannot be used; allowed: token ids"):
        engine.generate("hello", max_tokens=5)
    engine.close()
    with pytest.raises(FieldError, match="tokenizer: .* fix: pass token ids instead of text"):
        Tokenizer(checkpoint)
