"""What the first process of a run does before NeMo is imported: look at folders, read the data, make room."""

from __future__ import annotations

import math
from functools import partial

from nemo_diffgemma.checkpoint import text_tensors
from nemo_diffgemma.checkpoint_writer import MARKER
from nemo_diffgemma.errors import require
from nemo_diffgemma.files import check_replaceable, write_json
from nemo_diffgemma.training import run_folder
from nemo_diffgemma.training.config import TrainConfig
from nemo_diffgemma.training.corpus import Corpus, load_corpus
from nemo_diffgemma.training.experiment import changes, describe
from nemo_diffgemma.training.space import check_space, checkpoint_bytes
from nemo_diffgemma.training.vision import check_vision


def prepare(config: TrainConfig) -> Corpus:
    """Make the run's folder that of this run, new or resumed, and read its data.

    Call it in the first process alone, with the folder held. Nothing is trained or replaced yet.

    Raises:
        FieldError: when a folder is somebody else's or too full, a file of data not what it should be, the run in the
            folder another experiment, or there is nothing to resume from.
    """
    if config.init_from is None:
        check_vision(config.arch)
    check_replaceable(config.output, MARKER, "output")
    step = _step_to_go_on_from(config)
    if config.data.generate is not None:
        run_folder.claim(config.run)
    corpus = load_corpus(config, say=partial(print, flush=True))
    _check_space(config, step)
    _begin(config, describe(config, corpus.train.examples), step)
    return corpus


def _step_to_go_on_from(config: TrainConfig) -> int | None:
    """Step of the training checkpoint that a resumed run starts with; None for a new run."""
    found = None if config.resume == "false" else run_folder.newest_step(config.run)
    allowed = f"a training checkpoint in {config.run / run_folder.CHECKPOINTS}"
    fix = "pass resume=auto, which begins where there is nothing to go on from, or run=DIR"
    require(found is not None or config.resume != "true", field="resume", value=True, allowed=allowed, fix=fix)
    steps, allowed = config.optim.steps, f"{found} or more: {config.run} is at that step"
    require(
        (found or 0) <= steps,
        field="optim.steps",
        value=steps,
        allowed=allowed,
        fix=f"pass optim.steps={found}, or resume=false",
    )
    return found


def _check_space(config: TrainConfig, step: int | None) -> None:
    run_folder.remove_unfinished(config.run)
    shapes = text_tensors(config.arch)
    total = sum(math.prod(shape) for shape in shapes.values())
    routers = sum(math.prod(s) for n, s in shapes.items() if n.endswith((".router.proj.weight", ".router.scale")))
    size = checkpoint_bytes(total, total if config.optim.train_router else total - routers)
    # a new training checkpoint is whole before the one before is removed
    check_space(config.run, size * (2 if step is None else 1), config.output, _model_bytes(config, total))


def _model_bytes(config: TrainConfig, total: int) -> int:
    """Bytes of the trained model, nearly: ``total`` parameters, or what the base has."""
    if config.init_from is not None and config.output_dtype is None:
        return sum(path.stat().st_size for path in config.init_from.glob("*.safetensors"))
    return total * (2 if config.output_dtype == "bfloat16" else 4)


def _begin(config: TrainConfig, about: dict[str, object], step: int | None) -> None:
    run, before = config.run, run_folder.read(config.run)
    if step is None or not before:
        run_folder.begin(run, about)
        return
    changed = changes(before, about, run)
    for line in (*changed, f"step {step} of {config.optim.steps}, from {run_folder.checkpoint_path(run, step)}"):
        print(f"resume   {line}")
    write_json(run / run_folder.MARKER, about)
