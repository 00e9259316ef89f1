"""What only an operator may do, spelled in every way that might be taken for something else."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from http.client import HTTPException

from tritonclient.grpc import service_pb2 as pb

from tests.cases.spellings import SPELLINGS
from tests.cases.triton.attack import Attack
from tests.cases.triton.target import Target
from triton_repo.tensors import MODEL, UNARY_MODEL

_PATHS = (
    "/v2/repository/index",
    f"/v2/repository/models/{UNARY_MODEL}/load",
    f"/v2/repository/models/{UNARY_MODEL}/unload",
    "/v2/systemsharedmemory/status",
    "/v2/systemsharedmemory/region/x/register",
    "/v2/systemsharedmemory/unregister",
    "/v2/cudasharedmemory/status",
    "/v2/cudasharedmemory/region/x/register",
    "/v2/trace/setting",
    f"/v2/models/{MODEL}/trace/setting",
    "/v2/logging",
)
_METHODS = ("GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH", "post", "TRACE")
_HEADERS = (
    {"ADMIN": "x"},
    {"aDmIn": ""},
    {"admin": " "},
    {"X-Original-URL": "/v2/health/live"},
    {"X-HTTP-Method-Override": "POST"},
    {"triton-grpc-protocol-admin": "x"},
    {"Connection": "admin", "admin": "x"},
)
_REFUSED = ("400", "403", "404", "405", "501")
_CALLS = {
    "RepositoryIndex": pb.RepositoryIndexRequest(),
    "RepositoryModelLoad": pb.RepositoryModelLoadRequest(model_name=UNARY_MODEL),
    "RepositoryModelUnload": pb.RepositoryModelUnloadRequest(model_name=UNARY_MODEL),
    "SystemSharedMemoryStatus": pb.SystemSharedMemoryStatusRequest(),
    "SystemSharedMemoryRegister": pb.SystemSharedMemoryRegisterRequest(name="mine", key="/x", byte_size=8),
    "CudaSharedMemoryStatus": pb.CudaSharedMemoryStatusRequest(),
    "TraceSetting": pb.TraceSettingRequest(),
    "LogSettings": pb.LogSettingsRequest(),
}


def _spelled(target: Target, spell: Callable[[str], str], headers: dict[str, str] | None = None) -> str:
    """Every restricted path, spelled so; by each method."""
    found = set()
    for path in _PATHS:
        for method in _METHODS:
            try:
                status = target.http(spell(path), b"{}", headers, method).split()[0]
            except OSError:
                status = "closed"
            except HTTPException as error:
                status = type(error).__name__
            if status not in (*_REFUSED, "closed"):
                return f"{method} {spell(path)}: {status}"
            found.add(status)
    return f"refused: {' '.join(sorted(found))}"


def _spelled_grpc(target: Target, spell: Callable[[str], str]) -> str:
    found = set()
    for name, request in _CALLS.items():
        path = spell(f"/inference.GRPCInferenceService/{name}")
        told = target.named(path, request)
        if not told.startswith(("UNIMPLEMENTED", "UNAVAILABLE This protocol is restricted")):
            return f"{path}: {told}"
        found.add(told.split()[0])
    return f"refused: {' '.join(sorted(found))}"


RESTRICTED: dict[str, Attack] = {
    **{
        f"restricted paths by HTTP: {name}": Attack(partial(_spelled, spell=spell), "refused")
        for name, spell in SPELLINGS.items()
    },
    **{
        f"restricted paths by HTTP, header {headers}": Attack(partial(_spelled, spell=str, headers=headers), "refused")
        for headers in _HEADERS
    },
    **{
        f"restricted calls by gRPC: {name}": Attack(partial(_spelled_grpc, spell=spell), "refused")
        for name, spell in SPELLINGS.items()
    },
}
