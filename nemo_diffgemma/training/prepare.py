"""What the first process of a run does before NeMo is imported: look at folders, read the data, make room."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path

from nemo_diffgemma.checkpoint import Checkpoint, text_tensors
from nemo_diffgemma.checkpoint_writer import MARKER
from nemo_diffgemma.errors import FieldError, require
from nemo_diffgemma.files import check_replaceable, write_json
from nemo_diffgemma.training import run_folder
from nemo_diffgemma.training.batches import BatchOrder
from nemo_diffgemma.training.checkpoint_files import (
    CHECKPOINTS,
    checkpoint_path,
    checkpoint_steps,
    damage,
    remove_unfinished,
    set_aside,
)
from nemo_diffgemma.training.corpus import Corpus, load_corpus
from nemo_diffgemma.training.experiment import changes, describe
from nemo_diffgemma.training.settings import TrainConfig
from nemo_diffgemma.training.space import check_space, checkpoint_bytes
from nemo_diffgemma.training.vision import check_vision
from nemo_diffgemma.waiting import waiting


def prepare(config: TrainConfig) -> Corpus:
    """Make the run's folder that of this run, new or resumed, and read its data.

    Call it in the first process alone, with the folder held. Nothing is trained or replaced yet.

    Raises:
        FieldError: when a folder is somebody else's or too full, a file of data or weights not what it should be, the
            run in the folder another experiment, or there is nothing to resume from.
    """
    check_replaceable(config.output, MARKER, "output")
    step, damaged = _step_to_go_on_from(config)
    if config.init_from is None:
        check_vision(config.arch)  # after what takes no time: it imports transformers' models
    if config.data.generate is not None:
        run_folder.claim(config.run)
    corpus = load_corpus(config, say=partial(print, flush=True))
    BatchOrder(corpus.train.examples, config.data.batch, config.seed)
    if config.init_from is not None and step is None:
        _read_through(Checkpoint(config.init_from))
    _check_space(config, step)
    _begin(config, describe(config, corpus.train.examples), step, damaged)
    return corpus


def _step_to_go_on_from(config: TrainConfig) -> tuple[int | None, dict[Path, str]]:
    """Step of the training checkpoint that a resumed run starts with (None for a new run), and damaged newer ones.

    Raises:
        FieldError: when there is none, none that is whole, or the newest is damaged and ``resume=true`` wants that.
    """
    run = config.run
    steps = [] if config.resume == "false" else checkpoint_steps(run)[::-1]
    fix = "pass resume=auto, which begins where there is nothing to go on from, or run=DIR"
    allowed = f"a training checkpoint in {run / CHECKPOINTS}"
    require(bool(steps) or config.resume != "true", field="resume", value=True, allowed=allowed, fix=fix)
    damaged: dict[Path, str] = {}
    found = None
    for step in steps:
        path = checkpoint_path(run, step)
        wrong = damage(path)
        if wrong is None:
            found = step
            break
        damaged[path] = wrong
    if damaged and (found is None or config.resume == "true"):
        path, wrong = next(iter(damaged.items()))
        go_on = f"pass resume=auto, which goes on from step {found}"
        anew = "put a copy of it there, or pass resume=false to begin anew"
        raise FieldError(
            field="resume",
            value=f"{path}: {wrong}",
            allowed="a training checkpoint as it was written",
            fix=anew if found is None else go_on,
        )
    allowed = f"{found} or more: {run} is at that step"
    require(
        (found or 0) <= config.optim.steps,
        field="optim.steps",
        value=config.optim.steps,
        allowed=allowed,
        fix=f"pass optim.steps={found}, or resume=false",
    )
    return found, damaged


def _read_through(base: Checkpoint) -> None:
    """Look at every number of the weights that a new run begins with: one that is not usable may be in the last."""
    names = [*base.text_shapes, *base.vision_shapes]
    with waiting(f"reading {base.directory}", len(names)) as tick:
        for done, _ in enumerate(base.tensors(names), 1):
            tick(done)


def _check_space(config: TrainConfig, step: int | None) -> None:
    remove_unfinished(config.run)
    shapes = text_tensors(config.arch)
    total = sum(math.prod(shape) for shape in shapes.values())
    routers = sum(math.prod(s) for n, s in shapes.items() if n.endswith((".router.proj.weight", ".router.scale")))
    size = checkpoint_bytes(total, total if config.optim.train_router else total - routers)
    # two are kept, and a new one is whole before the older of them is removed
    there = 0 if step is None else min(2, len(checkpoint_steps(config.run)))
    check_space(config.run, size * (3 - there), config.output, _model_bytes(config, total))


def _model_bytes(config: TrainConfig, total: int) -> int:
    """Bytes of the trained model, nearly: ``total`` parameters, or what the base has."""
    if config.init_from is not None and config.output_dtype is None:
        return sum(path.stat().st_size for path in config.init_from.glob("*.safetensors"))
    return total * (2 if config.output_dtype == "bfloat16" else 4)


def _begin(config: TrainConfig, about: dict[str, object], step: int | None, damaged: dict[Path, str]) -> None:
    run, before = config.run, run_folder.read(config.run)
    if step is None or not before:
        run_folder.begin(run, about)
        return
    changed = changes(before, about, run)
    skipped = [f"{path}: {wrong}; it is kept as {set_aside(path).name}" for path, wrong in damaged.items()]
    for line in (*changed, *skipped, f"step {step} of {config.optim.steps}, from {checkpoint_path(run, step)}"):
        print(f"resume   {line}")
    write_json(run / run_folder.MARKER, about)
