"""The attacks, and what each is told."""

from __future__ import annotations

import gzip
import json
import socket
import struct
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import grpc
from tritonclient.grpc import service_pb2 as pb

from tests.cases.triton.attack import Attack
from tests.cases.triton.restricted import RESTRICTED
from tests.cases.triton.target import Given, Target, int32, text
from triton_repo.tensors import MODEL, UNARY_MODEL

GENERATE = f"/v2/models/{MODEL}/generate"
BIG = 15 * 2**20
RACES = 1000


def _with(told: str, **given: Given | None) -> Attack:
    return Attack(lambda target: target.ask(target.request(MODEL, **given)), told)


def _parameter(name: str, field: str, value: object, told: str, model: str = MODEL) -> Attack:
    def run(target: Target) -> str:
        request = target.request(model)
        setattr(request.parameters[name], field, value)
        return target.ask(request)

    return Attack(run, told)


def _outputs(name: str, count: int, told: str) -> Attack:
    def run(target: Target) -> str:
        request = target.request()
        for i in range(count):
            request.outputs.add(name=name.format(i))
        return target.ask(request)

    return Attack(run, told)


def _http(told: str, body: bytes, path: str = GENERATE, **headers: str) -> Attack:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Attack(lambda target: target.http(path, body, named), told)


def _restricted(method: str, request: object) -> Attack:
    def run(target: Target) -> str:
        guesses = ((), (("admin", "x"),), (("triton-grpc-protocol-admin", ""),), (("Admin".lower(), "\\t"),))
        return "; ".join(sorted({target.call(method, request, guess) for guess in guesses}))

    return Attack(run, "UNAVAILABLE This protocol is restricted, expecting header 'triton-grpc-protocol-admin'")


def _region(target: Target) -> str:
    """The shared memory by which tritonserver and its models' processes speak, given as if it were a client's."""
    name = next(path.name for path in Path("/dev/shm").glob("diffgemma_*"))
    register = pb.SystemSharedMemoryRegisterRequest(name="mine", key=f"/{name}", byte_size=1024)
    request = target.request()
    del request.raw_input_contents[:]
    for tensor in request.inputs:
        tensor.parameters["shared_memory_region"].string_param = name
        tensor.parameters["shared_memory_byte_size"].int64_param = 4
    told = target.ask(request).replace(name, "NAME")
    return f"{target.call('SystemSharedMemoryRegister', register).split(',')[0]}; {told}"


def cancel(target: Target, number: int, model: str = MODEL) -> str:
    """Go away, in another moment of a request's life for each number."""
    long: dict[str, Given | None] = {
        "max_tokens": ("INT32", [1, 1], int32(200)),
        "ignore_eos": ("BOOL", [1, 1], b"\1"),
    }
    request = target.request(model, **long)
    stream = target.stub.ModelStreamInfer
    call = stream(iter([request])) if model == MODEL else target.stub.ModelInfer.future(request)
    time.sleep(number % 10 * 0.002)
    call.cancel()
    return "cancelled"


def _races(model: str) -> Attack:
    def run(target: Target) -> str:
        with ThreadPoolExecutor(16) as pool:
            list(pool.map(lambda number: cancel(target, number, model), range(RACES)))
        return "cancelled"

    return Attack(run, "cancelled")


def reset(target: Target, number: int) -> str:
    """Reset a connection, every third in the middle of its request."""
    url = urlsplit(target.server.http_url)
    body = json.dumps({"text_input": "red", "max_tokens": 200, "ignore_eos": True, "stream": True}).encode()
    head = f"POST {GENERATE}_stream HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    with socket.create_connection((url.hostname, url.port)) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.sendall(head + (body if number % 3 else body[:10]))
        time.sleep(number % 10 * 0.002)
    return "reset"


def _resets(target: Target) -> str:
    for number in range(200):
        reset(target, number)
    return "reset"


_IDS = "tokenize with this checkpoint's tokenizer"
_NOT = "unexpected inference input"
_BOMB = gzip.compress(b'{"text_input": "' + b"a" * (50 * 2**20) + b'"}')
_SEQUENCE = "only these inputs: text_input, "

ATTACKS: dict[str, Attack] = {
    "token id beyond the vocabulary": _with(
        "error input_ids: 99999999 cannot", text_input=None, input_ids=("INT32", [1, 2], int32(5, 99999999))
    ),
    "token id far below 0": _with(
        "error input_ids: -2147483648 cannot", text_input=None, input_ids=("INT32", [1, 1], int32(-(2**31)))
    ),
    "token id 2**63": _with(
        "error [request id: hostile] inference input 'input_ids' data-type is 'UINT64'",
        text_input=None,
        input_ids=("UINT64", [1, 1], struct.pack("<Q", 2**63)),
    ),
    "a million token ids": _with(
        "error prompt: '1000000 tokens' cannot", text_input=None, input_ids=("INT32", [1, 10**6], bytes(4 * 10**6))
    ),
    "stop token id below 0": _with("error stop_token_ids: [-5] cannot", stop_token_ids=("INT32", [1, 1], int32(-5))),
    "end_id 2**31-1": _with("error stop_token_ids: [2147483647] cannot", end_id=("INT32", [1, 1], int32(2**31 - 1))),
    "seed below 0": _with(
        "error [request id: hostile] inference input 'seed' data-type is 'INT64'",
        seed=("INT64", [1, 1], struct.pack("<q", -1)),
    ),
    "pinned": _with("error unexpected inference input 'pinned'", pinned=("INT32", [1, 2], int32(-1, 2**31 - 1))),
    "seed_canvas": _with("error unexpected inference input 'seed_canvas'", seed_canvas=("INT32", [1, 1], int32(-1))),
    "100,000 outputs that are none": _outputs("no{}", 10**5, "error unexpected inference output 'no0'"),
    "one output 100,000 times": _outputs("text_output", 10**5, "OK"),
    "a shape whose product overflows": _with(
        "error [request id: hostile] input byte size mismatch", input_ids=("INT32", [2**32, 2**32 + 1], int32(1))
    ),
    "a shape below 0": _with(
        "error [request id: hostile] All input dimensions should be specified", input_ids=("INT32", [1, -1], int32(1))
    ),
    "a shape of 100,000 dimensions": _with(
        "error [request id: hostile] unexpected shape", input_ids=("INT32", [1] * 10**5, int32(1))
    ),
    "no element": _with("error prompt: 'no tokens' cannot", text_input=None, input_ids=("INT32", [1, 0], b"")),
    "BYTES cut off in a text": _with(
        "error incomplete string data", text_input=("BYTES", [1, 1], struct.pack("<I", 300) + b"red")
    ),
    "BYTES cut off in a length": _with(
        "error [request id: hostile] incomplete string length", text_input=("BYTES", [1, 1], b"\1")
    ),
    "BYTES of length 2**32-1": _with(
        "error incomplete string data", text_input=("BYTES", [1, 1], b"\xff\xff\xff\xffred")
    ),
    "BYTES of more elements": _with(
        "error [request id: hostile] unexpected number of string elements",
        text_input=("BYTES", [1, 1], text(b"red") * 2),
    ),
    "BYTES of 2**40 elements": _with(
        "error [request id: hostile] expected 1099511627776 string elements", stop_words=("BYTES", [1, 2**40], b"")
    ),
    "timeout 0": _parameter("timeout", "int64_param", 0, "OK"),
    "timeout below 0": _parameter("timeout", "int64_param", -5, "error timeout: -5 cannot be used"),
    "timeout 1 microsecond": _parameter("timeout", "int64_param", 1, "OK"),
    "sequence_id": _parameter("sequence_id", "int64_param", 7, "error sequence_id: 7 cannot be used"),
    "sequence_id, a text": _parameter("sequence_id", "string_param", "a", "error sequence_id: 'a' cannot be used"),
    "sequence_start": _parameter("sequence_start", "bool_param", True, "error sequence_start: True cannot be used"),
    "sequence_end": _parameter(
        "sequence_end", "bool_param", True, "INVALID_ARGUMENT sequence_end: True cannot be used", UNARY_MODEL
    ),
    "a parameter that is a float": _parameter(
        "temperature", "double_param", 0.5, "INVALID_ARGUMENT temperature: 0.5 cannot be used", UNARY_MODEL
    ),
    "control characters in an id": Attack(
        lambda target: target.ask(
            pb.ModelInferRequest.FromString(target.request().SerializeToString() + _id("a\n\x1b[31m{}\r"))
        ),
        "OK",
    ),
    "15 MB of text by gRPC": _with(
        "error text_input: '15728640 bytes' cannot", text_input=("BYTES", [1, 1], text(b"a" * BIG))
    ),
    "15 MB of text by HTTP": _http(
        '400 {"error":"text_input: \'15728640 bytes\' cannot', json.dumps({"text_input": "a" * BIG}).encode()
    ),
    "50 MB of text, compressed, by gRPC": Attack(
        lambda target: target.ask(
            target.request(text_input=("BYTES", [1, 1], text(b"a" * (50 * 2**20)))),
            compression=grpc.Compression.Gzip,
        ),
        "error text_input: '52428800 bytes' cannot",
    ),
    "50 MB of text, compressed, by HTTP": _http("400", _BOMB, content_encoding="gzip"),
    "JSON 100,000 deep": _http("400", b'{"text_input": ' + b"[" * 10**5 + b"]" * 10**5 + b"}"),
    "JSON of 100,000 open brackets": _http("500", b"[" * 10**5),
    "messages 60,000 deep": _with(
        "error messages: ", text_input=None, messages=("BYTES", [1, 1], text(b"[" * 60_000 + b"]" * 60_000))
    ),
    "messages 900 deep": _with(
        "error messages[0]: ", text_input=None, messages=("BYTES", [1, 1], text(b"[" * 900 + b"]" * 900))
    ),
    "messages 980 deep": _with(
        "error messages", text_input=None, messages=("BYTES", [1, 1], text(b"[" * 980 + b"]" * 980))
    ),
    "registering shared memory": _restricted("SystemSharedMemoryRegister", pb.SystemSharedMemoryRegisterRequest()),
    "shared memory of the server's own": Attack(
        _region, "UNAVAILABLE This protocol is restricted; error Unable to find shared memory region: 'NAME'"
    ),
    "listing models": _restricted("RepositoryIndex", pb.RepositoryIndexRequest()),
    "loading a model": _restricted("RepositoryModelLoad", pb.RepositoryModelLoadRequest(model_name=MODEL)),
    "unloading a model": _restricted("RepositoryModelUnload", pb.RepositoryModelUnloadRequest(model_name=MODEL)),
    "log settings": _restricted("LogSettings", pb.LogSettingsRequest()),
    "trace settings": _restricted("TraceSetting", pb.TraceSettingRequest()),
    **RESTRICTED,
    **{
        f"POST {path}": _http(told, b"{}", path)
        for path, told in {
            "/v2/repository/index": "403",
            "//v2/repository/index": "404",
            "/v2//repository/index": "404",
            "/v2/repository/inde%78": "404",
            "/v2/repository/index/": "404",
            "/v2/logging": "403",
            "/v2/systemsharedmemory/region/x/register": "403",
        }.items()
    },
    "POST /v2/repository/index with ADMIN": _http("403", b"{}", "/v2/repository/index", ADMIN="x"),
    f"{RACES:,} streams cancelled": _races(MODEL),
    f"{RACES:,} calls cancelled": _races(UNARY_MODEL),
    "200 connections reset": Attack(_resets, "reset"),
}


def _id(value: str) -> bytes:
    """The field of a request that names it, which then stands twice: the last one counts."""
    return bytes(pb.ModelInferRequest(id=value).SerializeToString())
