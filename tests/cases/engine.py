"""Engines: where a bundle may lie, builds that are stopped, and what checkpoints other tools write."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import DiffusionGemmaConfig

from nemo_diffgemma.checkpoint_writer import write_checkpoint
from tests.cases.case import Case
from tests.support import GENERATION_CONFIG, random_checkpoint, random_tensors, small_architecture

_BUILD = "diffgemma-engine build gpu=cpu compile=false"
_NOTES = {"README.md": "my project", "notes/ideas.txt": "mine"}
_EMBEDDING = "model.decoder.embed_tokens.weight"
_QUESTION = json.dumps(
    {"messages": [{"role": "user", "content": "red \u2028\u0085 chair"}, {"role": "assistant", "content": "blue"}]},
    ensure_ascii=False,
)


def _refused(name: str, arguments: str, said: str, **more: Any) -> Case:
    return Case(f"engine: {name}", f"{_BUILD} checkpoint={{base}} {arguments}", _NOTES, said, 2, **more)


def _builds(name: str, arguments: str = "", said: str = "^bundle   engine", **more: Any) -> Case:
    more.setdefault("files", _NOTES)
    return Case(f"engine: {name}", f"{_BUILD} out=engine {arguments}", said=said, **more)


def _untrained(folder: Path) -> None:
    random_checkpoint(folder / "model", small_architecture())


def _head_beside_the_embedding(folder: Path, equal: bool) -> None:
    _untrained(folder)
    model = folder / "model"
    (shard,) = model.glob("*.safetensors")
    tensors = load_file(shard)
    tensors["lm_head.weight"] = tensors[_EMBEDDING].clone() + (0 if equal else 1)
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    shard.unlink()
    (model / "model.safetensors.index.json").unlink()


def _shards_and_an_older_one(folder: Path) -> None:
    """As left where a model of one file was saved again in shards, and a shard of another saving stayed."""
    arch = small_architecture()
    tensors = random_tensors(arch, 0)
    write_checkpoint(folder / "model", arch, tensors, GENERATION_CONFIG, {}, max_shard_bytes=200_000)
    assert len(list((folder / "model").glob("model-*.safetensors"))) > 1
    old = {name: torch.zeros_like(tensor) for name, tensor in list(tensors.items())[:3]}
    save_file(old, folder / "model" / "model-00009-of-00009.safetensors", metadata={"format": "pt"})


def _nulls(folder: Path) -> None:
    """As transformers 5.18 writes what nobody has set."""
    _untrained(folder)
    path = folder / "model" / "generation_config.json"
    nothing = dict.fromkeys(("confidence_threshold", "max_denoising_steps", "sampler_config", "t_max", "t_min"))
    path.write_text(json.dumps(GENERATION_CONFIG | nothing))


def _as_transformers_saves_it(folder: Path) -> None:
    """Global layers of the local shapes, for which transformers 5.18 writes ``per_layer_config: {}``."""
    local = small_architecture()
    shapes = {"global_head_dim": local.head_dim, "num_global_key_value_heads": local.num_key_value_heads}
    directory = random_checkpoint(folder / "model", local.with_changes(**shapes))
    DiffusionGemmaConfig.from_pretrained(directory).save_pretrained(directory)
    assert json.loads((directory / "config.json").read_text())["text_config"]["per_layer_config"] == {}


def _modes(folder: Path) -> None:
    for path in (folder / "engine").rglob("*"):
        wanted = 0o755 if path.is_dir() else 0o644
        assert path.stat().st_mode & 0o777 == wanted, f"mode of {path.name}: {path.stat().st_mode & 0o777:o}"


def _spoiled(folder: Path) -> None:
    _untrained(folder)
    (shard,) = (folder / "model").glob("*.safetensors")
    tensors = load_file(shard)
    tensors[max(tensors)].fill_(float("nan"))
    save_file(tensors, shard, metadata={"format": "pt"})


def _nothing_left(folder: Path) -> None:
    assert [p.name for p in folder.iterdir()] == ["model"], "a refused build left something"


def _nothing_built(folder: Path) -> None:
    assert {p.name for p in folder.iterdir()} == {name.split("/")[0] for name in _NOTES}, "something was made"


def _nothing_but_work(folder: Path) -> None:
    assert not (folder / "engine").exists(), "there is half a bundle"
    assert len(list(folder.glob(".engine.*.partial"))) == 1, "what was done is not kept"


_ONCE = f"{_BUILD} checkpoint={{base}} out=engine"
_LONG = _QUESTION.replace("red", "red " * 80)


def _nothing_built(folder: Path) -> None:
    assert not [*folder.glob("engine*"), *folder.glob(".*.partial")], "something was built"


CASES = (
    _refused("out is a folder of mine", "out=notes", "^error: out: 'notes holds ideas.txt' .*a new or empty folder"),
    *(
        _refused(f"{key} is no UTF-8", f"{key}=x\udce9", rf"^error: {key}: 'x.udce9' .*a name in UTF-8")
        for key in ("out", "checkpoint", "held_out", "calibration")
    ),
    _refused("out is where I am", "out=.", "^error: out: .*the one you are in"),
    _refused("out is empty", "out=", "^error: out: '' cannot be used"),
    _refused("out is a file of mine", "out=README.md", "^error: out: 'README.md' .*a folder"),
    _refused("out is what it reads", "out={base}", "^error: out: .*which the build reads"),
    _refused("out cannot be written", "out=/proc/engine", "^error: out: '/proc"),
    *(
        _refused(override, f"out=engine {override}", f"^error: {said}", check=_nothing_built)
        for override, said in (
            ("gpu.limits.slots=1000000000", "gpu.limits.slots: 1000000000 .*GB of memory hold"),
            ("gpu.limits.context=1", "gpu.limits.context: 1 .*one token of a prompt"),
            ("precision.quantize=5", "precision.quantize: 5 .*a list of classes"),
        )
    ),
    _builds(
        "engine.old, engine.partial and engine.lock of mine beside out=engine",
        "checkpoint={base}",
        files={"engine.old/a": "mine", "engine.partial/b": "mine", ".engine.partial/c": "mine", "engine.lock": "mine"},
    ),
    _builds("built again at another precision", "checkpoint={base} precision=bf16", first=(_ONCE,)),
    _builds("others may read what was written", "checkpoint={base}", check=_modes),
    *(
        Case(
            f"engine: {number.name} in the middle",
            "diffgemma-engine build gpu=cpu checkpoint={base} out=engine",
            _NOTES,
            "^stopped.*run the same command again: it goes on where it stopped",
            128 + number,
            stop=(number, "^compile"),
            check=_nothing_but_work,
        )
        for number in (signal.SIGTERM, signal.SIGINT)
    ),
    Case(
        "engine: refused for its weights",
        f"{_BUILD} checkpoint=model out=deep/engine",
        said="^error: checkpoint:.*NaN or infinity",
        status=2,
        setup=_spoiled,
        check=_nothing_left,
    ),
    Case(
        "engine: a folder that is not there in out",
        f"{_BUILD} checkpoint={{base}} out=a/../b/engine",
        _NOTES,
        "^bundle   /.*/b/engine: 0.[1-9]",
    ),
    Case(
        "engine: a full volume",
        _ONCE,
        _NOTES,
        "^error: .*run the same command again: it goes on where it stopped",
        1,
        largest_file=2**14,
    ),
    _builds(
        "an untrained model in bfloat16",
        "checkpoint=model precision=bf16",
        setup=_untrained,
    ),
    _builds(
        "lm_head.weight beside the embedding, equal",
        "checkpoint=model",
        setup=lambda folder: _head_beside_the_embedding(folder, True),
    ),
    Case(
        "engine: lm_head.weight beside the embedding, another",
        f"{_BUILD} checkpoint=model out=engine",
        said="^error: checkpoint:lm_head.weight",
        status=2,
        setup=lambda folder: _head_beside_the_embedding(folder, False),
    ),
    _builds("shards, and one of another saving", "checkpoint=model", setup=_shards_and_an_older_one),
    _builds("null where nothing was set", "checkpoint=model", setup=_nulls),
    _builds("per_layer_config {} as transformers writes it", "checkpoint=model", setup=_as_transformers_saves_it),
    *(
        Case(
            f"engine: one of {key} is too long for the engine",
            "diffgemma-engine build gpu=h100 precision=fp8_static checkpoint={base} out=engine gpu.limits.context=128 "
            f"calibration=asked.jsonl held_out=asked.jsonl {key}=long.jsonl",
            {"asked.jsonl": _QUESTION, "long.jsonl": f"{_QUESTION}\n{_LONG}\n"},
            rf"^error: {key}: long.jsonl:2: messages: '\d+ tokens .*at most 128.*fix: pass gpu.limits.context=",
            status=2,
            check=_nothing_built,
        )
        for key in ("calibration", "held_out")
    ),
    Case(
        "engine: held-out and calibration files with a mark, blank lines, U+2028",
        "diffgemma-engine build gpu=h100 precision=fp8_static checkpoint={base} out=engine calibration=asked.jsonl held_out=asked.jsonl",
        {"asked.jsonl": f"\ufeff{_QUESTION}\r\n\n{_QUESTION.replace('red', 'green')}\n"},
        "^bundle   engine",
    ),
)
