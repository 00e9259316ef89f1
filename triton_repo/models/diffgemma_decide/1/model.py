"""Questions about a text, for plain ModelInfer: the same inputs and outputs, one response."""

from typing import Any

import triton_python_backend_utils as pb

from nemo_diffgemma.errors import require
from triton_repo.python_backend.forward import ForwardingModel
from triton_repo.tensors import DECIDE_INPUTS, DECIDE_OUTPUTS


class Decide:
    """Everything as it is."""

    outputs = DECIDE_OUTPUTS

    def inputs(self, request: Any) -> dict[str, Any]:
        found = {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}
        require(
            "questions" in found,
            field="questions",
            value=None,
            allowed="JSON list of questions",
            fix='send [{"type": "predicate", "instructions": "..."}]',
        )
        return {name: array for name, array in found.items() if name in DECIDE_INPUTS}

    def response(self, outputs: dict[str, Any]) -> list[Any]:
        return [pb.Tensor(name, array) for name, array in outputs.items()]

    def message(self, text: str) -> str:
        return text


class TritonPythonModel(ForwardingModel):
    entry = Decide()
