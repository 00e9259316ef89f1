"""Triton's model configs, rendered from :mod:`triton_repo.tensors` and validated against Triton's own schema.

``config.pbtxt`` serves any engine. ``configs/<gpu>.pbtxt``, which ``--model-config-name=<gpu>`` chooses, says for which
GPU, and the model then loads no engine for another.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import trtllm_build
from nemo_diffgemma.errors import FieldError, require
from triton_repo.tensors import (
    ALL_INPUTS,
    ALL_OUTPUTS,
    DECIDE_INPUTS,
    DECIDE_MODEL,
    DECIDE_OUTPUTS,
    MODEL,
    OUTPUTS,
    TOKEN_INPUTS,
    TOKEN_MODEL,
    TOKEN_OUTPUTS,
    UNARY_MODEL,
    Tensor,
)

REPOSITORY = Path(__file__).parent / "models"
_REMEDY = "correct triton_repo/tensors.py"
_GPU_PARAMETER = "gpu"
_LIMITS = ("slots", "context", "canvas", "queue")

_HEAD = """\
# Rendered from triton_repo/tensors.py; change it there and run: python -m triton_repo.config --write
name: "{name}"
backend: "python"
# Every request is one generation, shape [1, *dims]; the engine joins them between denoising steps, not Triton.
max_batch_size: 1
{decoupled}# The engine picks its device itself, from its bundle; one process holds it.
instance_group [ {{ kind: KIND_CPU, count: 1 }} ]
"""
_DECOUPLED = "model_transaction_policy { decoupled: true }\n"
_LENGTHS = Tensor("input_lengths", "INT32", "how many of input_ids count; default: all")


def render(model: str = MODEL, parameters: Mapping[str, object] = {}) -> str:
    """The text of a ``config.pbtxt``.

    Args:
        model: which of the served models.
        parameters: what to say of the engine.
    """
    inputs, outputs = list(ALL_INPUTS.values()), OUTPUTS
    if model == TOKEN_MODEL:
        inputs = [_renamed(outer, inner) for outer, inner in TOKEN_INPUTS.items()]
        outputs = TOKEN_OUTPUTS
    if model == DECIDE_MODEL:
        inputs = [ALL_INPUTS[name] for name in DECIDE_INPUTS]
        outputs = tuple(ALL_OUTPUTS[name] for name in DECIDE_OUTPUTS)
    head = _HEAD.format(name=model, decoupled="" if model in (UNARY_MODEL, DECIDE_MODEL) else _DECOUPLED)
    said = [
        f'parameters {{ key: "{name}" value {{ string_value: "{value}" }} }}\n' for name, value in parameters.items()
    ]
    tensors = [_tensor("input", t, "optional: true ") for t in inputs] + [_tensor("output", t, "") for t in outputs]
    return head + "".join(said + tensors)


def _renamed(outer: str, inner: str) -> Tensor:
    if not inner:
        return _LENGTHS
    tensor = ALL_INPUTS[inner]
    return Tensor(outer, tensor.dtype, tensor.about, tensor.dims)


def for_engine(manifest: Mapping[str, Any]) -> dict[str, object]:
    """What a config says of an engine, from its bundle's manifest."""
    limits = {name: manifest["limits"][name] for name in _LIMITS}
    kind = {"precision": manifest["precision"]["name"], "backend": manifest["backend"]}
    return {_GPU_PARAMETER: manifest["gpu"], **kind, **limits}


def check_engine(parameters: Mapping[str, Any], manifest: Mapping[str, Any]) -> None:
    """Hold an engine to the config it is served under.

    Args:
        parameters: of the config, as Triton gives them to a model: ``{name: {"string_value": value}}``.
        manifest: of the engine's bundle.

    Raises:
        FieldError: when the config is for another GPU.
    """
    wanted = parameters.get(_GPU_PARAMETER, {}).get("string_value", manifest["gpu"])
    fix = f"pass --model-config-name={manifest['gpu']}, or build with `make engine GPU={wanted}`"
    require(
        manifest["gpu"] == wanted,
        field="engine:gpu",
        value=manifest["gpu"],
        allowed=f"{wanted}, as this config says",
        fix=fix,
    )


def files() -> dict[Path, str]:
    """Every config of the repository and its rendering."""
    configs = {
        REPOSITORY / model / "config.pbtxt": render(model) for model in (MODEL, UNARY_MODEL, DECIDE_MODEL, TOKEN_MODEL)
    }
    for gpu in _gpus():
        configs[REPOSITORY / MODEL / "configs" / f"{gpu}.pbtxt"] = render(parameters={_GPU_PARAMETER: gpu})
    return configs


def _gpus() -> list[str]:
    return sorted(path.stem for path in (Path(trtllm_build.__file__).parent / "conf" / "gpu").glob("*.yaml"))


def validate(text: str) -> Any:
    """Parse ``text`` as Triton does.

    Returns:
        The ``inference.ModelConfig`` message.

    Raises:
        FieldError: when Triton's schema refuses it or a tensor is named twice.
    """
    from google.protobuf import text_format  # the model's process has no use for it
    from tritonclient.grpc import model_config_pb2

    try:
        config = text_format.Parse(text, model_config_pb2.ModelConfig())
    except text_format.ParseError as error:
        raise FieldError(field="config.pbtxt", value=str(error), allowed="Triton's ModelConfig", fix=_REMEDY) from error
    for tensors in (config.input, config.output):
        names = [tensor.name for tensor in tensors]
        twice = sorted({name for name in names if names.count(name) > 1})
        require(not twice, field="config.pbtxt", value=twice, allowed="each tensor once", fix=_REMEDY)
    return config


def check() -> None:
    """Hold the committed configs to the rendering.

    Raises:
        FieldError: when one is missing, differs, or is there without being rendered.
    """
    rendered = files()
    for path, text in rendered.items():
        validate(text)
        found = "no file" if not path.is_file() else "as rendered" if path.read_text() == text else "another text"
        require(
            found == "as rendered",
            field=str(path),
            value=found,
            allowed="what is rendered",
            fix="python -m triton_repo.config --write",
        )
    strange = sorted(str(path) for path in REPOSITORY.glob("**/*.pbtxt") if path not in rendered)
    require(not strange, field="configs", value=strange, allowed="only configs that are rendered", fix="remove them")


def _tensor(kind: str, tensor: Tensor, optional: str) -> str:
    dims = ", ".join(map(str, tensor.dims))
    fields = f'name: "{tensor.name}" data_type: TYPE_{tensor.dtype} dims: [ {dims} ] {optional}'
    return f"# {tensor.about}\n{kind} {{ {fields}}}\n"


def main(arguments: list[str] | None = None) -> int:
    """Check (or write) the committed configs, or print one engine's; exit status 1 when they differ."""
    parser = argparse.ArgumentParser(prog="python -m triton_repo.config", description=__doc__)
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--check", action="store_true", help="fail when a committed file differs from its rendering")
    action.add_argument("--write", action="store_true", help="write the renderings")
    action.add_argument("--engine", metavar="DIR", help="print the config of an engine bundle, with its limits")
    given = parser.parse_args(arguments)
    try:
        if given.engine:
            from trtllm_build.bundle import Bundle

            manifest = Bundle.open(given.engine, elsewhere=True).manifest
            print(render(parameters=for_engine(manifest)), end="")
            return 0
        if given.write:
            for path, text in files().items():
                validate(text)
                path.parent.mkdir(exist_ok=True)
                path.write_text(text)
        check()
    except FieldError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{len(files())} model configs: {len(ALL_INPUTS)} inputs, {len(OUTPUTS)} outputs, as rendered")
    return 0


if __name__ == "__main__":
    sys.exit(main())
