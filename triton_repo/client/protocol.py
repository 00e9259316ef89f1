"""Triton's inference protocol, as far as this client speaks it: messages and methods without generated code.

The names and numbers are those of the Open Inference Protocol's ``grpc_service.proto``
(https://github.com/kserve/open-inference-protocol) and of Triton's extension for streams. The descriptors lie in a pool
of their own: another client's generated code, which registers the same names, may live in the same process.
"""

from __future__ import annotations

from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

_PACKAGE = "inference"
_SERVICE = f"/{_PACKAGE}.GRPCInferenceService"
_TYPES = {
    "string": descriptor_pb2.FieldDescriptorProto.TYPE_STRING,
    "bytes": descriptor_pb2.FieldDescriptorProto.TYPE_BYTES,
    "bool": descriptor_pb2.FieldDescriptorProto.TYPE_BOOL,
    "int64": descriptor_pb2.FieldDescriptorProto.TYPE_INT64,
}
_TENSOR = {"name": (1, "string"), "datatype": (2, "string"), "shape": (3, "int64*")}
_MODEL = {"model_name": (1, "string"), "model_version": (2, "string"), "id": (3, "string")}
# Message -> field -> its number and type; "*" is `repeated`. What is left out is neither sent nor read.
_MESSAGES: dict[str, dict[str, tuple[int, str]]] = {
    "ServerMetadataRequest": {},
    "ServerMetadataResponse": {"name": (1, "string"), "version": (2, "string"), "extensions": (3, "string*")},
    "ModelReadyRequest": {"name": (1, "string"), "version": (2, "string")},
    "ModelReadyResponse": {"ready": (1, "bool")},
    "InferInputTensor": _TENSOR,
    "InferOutputTensor": _TENSOR,
    "ModelInferRequest": {**_MODEL, "inputs": (5, "InferInputTensor*"), "raw_input_contents": (7, "bytes*")},
    "ModelInferResponse": {**_MODEL, "outputs": (5, "InferOutputTensor*"), "raw_output_contents": (6, "bytes*")},
    "ModelStreamInferResponse": {"error_message": (1, "string"), "infer_response": (2, "ModelInferResponse")},
}


def _classes() -> dict[str, Any]:
    file = descriptor_pb2.FileDescriptorProto(name="grpc_service.proto", package=_PACKAGE, syntax="proto3")
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for field, (number, kind) in fields.items():
            added = message.field.add(name=field, number=number)
            repeated, plain = kind.endswith("*"), kind.rstrip("*")
            added.label = added.LABEL_REPEATED if repeated else added.LABEL_OPTIONAL
            if plain in _TYPES:
                added.type = _TYPES[plain]
            else:
                added.type, added.type_name = added.TYPE_MESSAGE, f".{_PACKAGE}.{plain}"
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    found = pool.FindFileByName(file.name).message_types_by_name
    return {name: message_factory.GetMessageClass(found[name]) for name in _MESSAGES}


_CLASSES = _classes()
ServerMetadataRequest, ServerMetadataResponse = _CLASSES["ServerMetadataRequest"], _CLASSES["ServerMetadataResponse"]
ModelReadyRequest, ModelReadyResponse = _CLASSES["ModelReadyRequest"], _CLASSES["ModelReadyResponse"]
ModelInferRequest, ModelInferResponse = _CLASSES["ModelInferRequest"], _CLASSES["ModelInferResponse"]
ModelStreamInferResponse = _CLASSES["ModelStreamInferResponse"]


class Stub:
    """The methods of the service on one channel."""

    def __init__(self, channel: Any):
        def unary(method: str, request: Any, response: Any) -> Any:
            return channel.unary_unary(f"{_SERVICE}/{method}", request.SerializeToString, response.FromString)

        self.ServerMetadata = unary("ServerMetadata", ServerMetadataRequest, ServerMetadataResponse)
        self.ModelReady = unary("ModelReady", ModelReadyRequest, ModelReadyResponse)
        self.ModelStreamInfer = channel.stream_stream(
            f"{_SERVICE}/ModelStreamInfer", ModelInferRequest.SerializeToString, ModelStreamInferResponse.FromString
        )
