"""Whether a run's settings go together: sizes with processes, folders with each other."""

from __future__ import annotations

from nemo_diffgemma.errors import require
from nemo_diffgemma.training.run_folder import OWN_NAMES
from nemo_diffgemma.training.settings import TrainConfig


def check_together(config: TrainConfig) -> None:
    """Compare settings with each other.

    Raises:
        FieldError: for two that do not go together.
    """
    arch, world = config.arch, config.parallel.world_size
    batch, longest = config.data.batch, config.data.max_tokens
    require(
        batch % world == 0,
        field="data.batch",
        value=batch,
        allowed=f"a multiple of the {world} processes",
        fix=f"pass data.batch={world}",
    )
    limit = arch.max_position_embeddings
    require(
        longest <= limit,
        field="data.max_tokens",
        value=longest,
        allowed=f"at most {limit} (model)",
        fix=f"pass data.max_tokens={limit}",
    )
    _check_widths(config)
    run, output = config.run.resolve(), config.output.resolve()
    apart = output != run and output not in run.parents
    allowed = f"a folder that run={config.run} does not lie in"
    require(
        apart,
        field="output",
        value=str(config.output),
        allowed=allowed,
        fix=f"pass output={config.run / 'checkpoint'}, or leave it out",
    )
    inside = output.relative_to(run).parts[0] if run in output.parents else ""
    require(
        not OWN_NAMES.fullmatch(inside),
        field="output",
        value=str(config.output),
        allowed=f"a folder apart from {config.run / inside}, which the run itself writes",
        fix=f"pass output={config.run / 'checkpoint'}, or leave it out",
    )
    for field, paths in (("data.train", config.data.train), ("data.validation", config.data.validation)):
        replaced = [path for path in paths if output in path.resolve().parents]
        require(
            not replaced,
            field=field,
            value=", ".join(map(str, replaced)),
            allowed=f"files apart from output={config.output}, which is replaced",
            fix="pass output=DIR with another folder, or move the files elsewhere",
        )
    if config.init_from is not None:
        base = config.init_from.resolve()
        apart = base not in (run, output) and base not in run.parents and base not in output.parents
        allowed = f"folders apart from init_from={config.init_from}, which stays as it is"
        require(
            apart,
            field="output",
            value=f"run={config.run} output={config.output}",
            allowed=allowed,
            fix="pass run=DIR output=DIR",
        )


def _check_widths(config: TrainConfig) -> None:
    """The experts' products, one matrix each (torch's grouped_mm), begin every row at a multiple of 16 bytes."""
    parallel = config.parallel
    halves = parallel.compute_dtype == "bfloat16" or (parallel.compute_dtype, parallel.accelerator) == ("auto", "cuda")
    step = 8 if halves else 4
    for name in ("hidden_size", "moe_intermediate_size"):
        value = getattr(config.arch, name)
        field = f"model.{name}" if config.init_from is None else f"init_from:config.json:text_config.{name}"
        require(
            value % step == 0,
            field=field,
            value=value,
            allowed=f"a multiple of {step}, which training the experts takes",
            fix=f"pass model.{name}={max(step, value // step * step)}"
            if config.init_from is None
            else "fine-tune another checkpoint",
        )
