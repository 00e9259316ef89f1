"""The served model at token level, under the names of TensorRT-LLM's own model: for callers with their tokenizer."""

from typing import Any

import numpy as np
import triton_python_backend_utils as pb

from nemo_diffgemma.errors import require
from triton_repo.python_backend.forward import ForwardingModel
from triton_repo.tensors import TOKEN_INPUTS, TOKEN_OUTPUTS


class Tokens:
    """Token ids in, token ids out."""

    outputs = tuple(t.name for t in TOKEN_OUTPUTS if t.name != "sequence_length")

    def inputs(self, request: Any) -> dict[str, Any]:
        found = {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}
        require(
            "input_ids" in found, field="input_ids", value=None, allowed="token ids of the prompt", fix="send input_ids"
        )
        ids = found["input_ids"].reshape(1, -1)
        count = int(found["input_lengths"].item()) if "input_lengths" in found else ids.shape[1]
        good = 1 <= count <= ids.shape[1]
        require(
            good,
            field="input_lengths",
            value=count,
            allowed=f"1 to {ids.shape[1]}, the size of input_ids",
            fix="send how many count",
        )
        values = {TOKEN_INPUTS[name]: array.reshape(1, -1) for name, array in found.items() if TOKEN_INPUTS[name]}
        return {**values, "input_ids": ids[:, :count]}

    def response(self, outputs: dict[str, Any]) -> list[Any]:
        ids = outputs.pop("output_ids").reshape(1, 1, -1).astype(np.int32)
        length = np.array([[ids.shape[2]]], dtype=np.int32)
        tensors = {"output_ids": ids, "sequence_length": length, **outputs}
        return [pb.Tensor(name, array) for name, array in tensors.items()]

    def message(self, text: str) -> str:
        """Errors begin with the name of the input."""
        name, colon, rest = text.partition(":")
        return {inner: outer for outer, inner in TOKEN_INPUTS.items()}.get(name, name) + colon + rest


class TritonPythonModel(ForwardingModel):
    entry = Tokens()
