"""``config.pbtxt``, rendered from :mod:`triton_repo.tensors` and validated against Triton's own schema."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from nemo_diffgemma.errors import FieldError, require
from triton_repo.tensors import ALL_INPUTS, MODEL, OUTPUTS, Tensor

REPOSITORY = Path(__file__).parent / "models"
CONFIG_FILE = REPOSITORY / MODEL / "config.pbtxt"
_REMEDY = "correct triton_repo/tensors.py"

_HEAD = f"""\
# Rendered from triton_repo/tensors.py; change it there and run: python -m triton_repo.config --write
name: "{MODEL}"
backend: "python"
# Every request is one generation, shape [1, *dims]; the engine joins them between denoising steps, not Triton.
max_batch_size: 1
model_transaction_policy {{ decoupled: true }}
# The engine picks its device itself, from its bundle; one process holds it.
instance_group [ {{ kind: KIND_CPU, count: 1 }} ]
"""


def render() -> str:
    """The text of ``config.pbtxt``."""
    inputs = [_tensor("input", tensor, "optional: true ") for tensor in ALL_INPUTS.values()]
    outputs = [_tensor("output", tensor, "") for tensor in OUTPUTS]
    return _HEAD + "".join(inputs + outputs)


def validate(text: str) -> Any:
    """Parse ``text`` as Triton does.

    Returns:
        The ``inference.ModelConfig`` message.

    Raises:
        FieldError: when Triton's schema refuses it or a tensor is named twice.
    """
    try:
        config = text_format.Parse(text, model_config_pb2.ModelConfig())
    except text_format.ParseError as error:
        raise FieldError("config.pbtxt", str(error), "Triton's ModelConfig", _REMEDY) from error
    for tensors in (config.input, config.output):
        names = [tensor.name for tensor in tensors]
        twice = sorted({name for name in names if names.count(name) > 1})
        require(not twice, "config.pbtxt", twice, "each tensor once", _REMEDY)
    return config


def check(path: Path = CONFIG_FILE) -> None:
    """Hold the committed config to the rendering.

    Raises:
        FieldError: when it is missing or differs.
    """
    validate(render())
    same = path.is_file() and path.read_text() == render()
    found = "another text" if path.is_file() else "no file"
    require(same, str(path), found, "what triton_repo/tensors.py renders", "python -m triton_repo.config --write")


def _tensor(kind: str, tensor: Tensor, optional: str) -> str:
    dims = ", ".join(map(str, tensor.dims))
    fields = f'name: "{tensor.name}" data_type: TYPE_{tensor.dtype} dims: [ {dims} ] {optional}'
    return f"# {tensor.about}\n{kind} {{ {fields}}}\n"


def main(arguments: list[str] | None = None) -> int:
    """Check (or write) the committed ``config.pbtxt``; exit status 1 when it differs."""
    parser = argparse.ArgumentParser(prog="python -m triton_repo.config", description=__doc__)
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--check", action="store_true", help="fail when the committed file differs from the rendering")
    action.add_argument("--write", action="store_true", help="write the rendering")
    if parser.parse_args(arguments).write:
        validate(render())
        CONFIG_FILE.write_text(render())
    try:
        check()
    except FieldError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{CONFIG_FILE.name}: {len(ALL_INPUTS)} inputs, {len(OUTPUTS)} outputs, as rendered")
    return 0


if __name__ == "__main__":
    sys.exit(main())
