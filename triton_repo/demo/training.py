"""The demo's first stage: train, go on with what was interrupted, or find it done."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Literal

import torch

import nemo_diffgemma
from nemo_diffgemma.architecture import Architecture
from nemo_diffgemma.checkpoint import Checkpoint, text_tensors
from nemo_diffgemma.errors import FieldError
from nemo_diffgemma.files import write_json
from trtllm_build.hardware import available_cpus

ROOT = Path("build/demo")
RUN, CHECKPOINT, ENGINE = ROOT / "train", ROOT / "checkpoint", ROOT / "engine"
_BEGUN, _DONE = "begun_by.json", "trained_by.json"
_CONFIG = Path(nemo_diffgemma.__file__).parent / "conf" / "model" / "demo.yaml"


def arguments(resume: Literal["auto", "false"]) -> list[str]:
    """Of ``diffgemma-train``: on the CPU, in two processes where there are two cores, as the figures are given for."""
    processes = ["parallel=ddp", "parallel.devices=2"] if len(available_cpus()) > 1 else []
    where = [f"run={RUN}", f"output={CHECKPOINT}", "parallel.accelerator=cpu", *processes]
    return [*where, "output_conversations=true", f"resume={resume}"]


def parameters() -> int:
    """Parameters of the demo's text model, by its config."""
    from omegaconf import OmegaConf

    values = OmegaConf.to_container(OmegaConf.load(_CONFIG))
    assert isinstance(values, dict)
    arch = Architecture.from_dict({str(name): value for name, value in values.items()})
    return sum(torch.Size(shape).numel() for shape in text_tensors(arch).values())


def code() -> str:
    """Hash of everything that decides what is trained: code and configs of nemo_diffgemma, and the arguments."""
    root = Path(nemo_diffgemma.__file__).parent
    digest = hashlib.sha256(" ".join(arguments("auto")).encode())
    for path in sorted(p for p in root.rglob("*") if p.suffix in (".py", ".yaml")):
        digest.update(path.relative_to(root).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()


def is_trained(root: Path = ROOT) -> bool:
    """Whether the checkpoint in place is whole, and the one that this code has trained here."""
    stamp = _read(root / _DONE)
    if stamp.get("code") != code():
        return False
    try:
        return Checkpoint(root / CHECKPOINT.name).sha256 == stamp.get("checkpoint")
    except FieldError:
        return False


def begin() -> list[str]:
    """Note that this code trains; the arguments to do it with, which go on with a run of the same code."""
    same = _read(ROOT / _BEGUN).get("code") == code()
    write_json(ROOT / _BEGUN, {"code": code()})
    return arguments("auto" if same else "false")


def finish() -> None:
    """Note that the checkpoint in place is this code's."""
    write_json(ROOT / _DONE, {"code": code(), "checkpoint": Checkpoint(CHECKPOINT).sha256})


def _read(path: Path) -> dict[str, str]:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
