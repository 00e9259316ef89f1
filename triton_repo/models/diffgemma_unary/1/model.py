"""The served model for plain ModelInfer: the same inputs and outputs, one response."""

from typing import Any

import triton_python_backend_utils as pb

from nemo_diffgemma.errors import require
from triton_repo.python_backend.forward import ForwardingModel
from triton_repo.tensors import ALL_INPUTS, ALL_OUTPUTS


class Unary:
    """Everything as it is, but no stream."""

    outputs = tuple(ALL_OUTPUTS)

    def inputs(self, request: Any) -> dict[str, Any]:
        found = {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}
        for name in ("stream", "drafts"):
            asked = name in found and bool(found[name].item())
            require(
                not asked,
                field=name,
                value=True,
                allowed="false: this model sends one response",
                fix="ask the model diffgemma",
            )
        return {name: array for name, array in found.items() if name in ALL_INPUTS}

    def response(self, outputs: dict[str, Any]) -> list[Any]:
        return [pb.Tensor(name, array) for name, array in outputs.items()]

    def message(self, text: str) -> str:
        return text


class TritonPythonModel(ForwardingModel):
    entry = Unary()
