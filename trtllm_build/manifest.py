"""A bundle's ``manifest.json``, read in one place: whatever was edited in it, the message names the key."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from nemo_diffgemma.errors import FieldError, require
from nemo_diffgemma.json_files import read_object

CONTRACT = 3
MANIFEST = "manifest.json"
_FIELD = f"engine:{MANIFEST}"
_ALWAYS = ("architecture.json", "sampler.json")


def _below(name: str) -> str:
    parts = PurePosixPath(name).parts
    if not parts or name.startswith("/") or ".." in parts or "\0" in name:
        raise ValueError("a path below the bundle")
    return name


class _Part(BaseModel):
    model_config = ConfigDict(strict=True)


class _Entry(_Part):
    bytes: Annotated[int, Field(ge=0)]
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class _Limits(_Part):
    model_config = ConfigDict(strict=True, extra="forbid")
    context: Annotated[int, Field(ge=1)]
    slots: Annotated[int, Field(ge=1)]
    canvas: Annotated[int, Field(ge=1)]
    vocab_size: Annotated[int, Field(ge=1)]
    queue: Annotated[int, Field(ge=1)]
    cache_tokens: Annotated[int, Field(ge=1)] | None


class _Cpu(_Part):
    kind: Literal["cpu"]
    machine: str
    system: str
    features: list[str]


class _Gpu(_Part):
    kind: Literal["cuda"]
    name: Annotated[str, Field(min_length=1)]
    sm: Annotated[int, Field(ge=1)]


class _Named(_Part):
    name: Annotated[str, Field(min_length=1)]


class _Runtime(_Part):
    threads: Annotated[int, Field(ge=1, le=4096)] = 1
    pieces: Literal["compiled", "eager"] = "eager"


class _Manifest(_Part):
    """What is read of a manifest; what else a build wrote stands beside it."""

    manifest_hash: str
    gpu: Annotated[str, Field(min_length=1)]
    backend: Annotated[str, Field(min_length=1)]
    precision: _Named
    checkpoint: _Named
    limits: _Limits
    hardware: Annotated[_Cpu | _Gpu, Field(discriminator="kind")]
    runtime: _Runtime
    verified: Literal["executed", "compiled", "none"]
    remaining: list[str]
    files: dict[Annotated[str, AfterValidator(_below)], _Entry]


def read_manifest(directory: Path) -> dict[str, Any]:
    """The manifest of a bundle, with every key that anything here reads, each of its kind.

    Raises:
        FieldError: when it is no JSON object, of another contract, or a key is missing or something else; with the key.
    """
    path = directory / MANIFEST
    rebuild = "build it again with `make engine GPU={}`"
    manifest = read_object(path, _FIELD, rebuild.format("cpu"))
    gpu = manifest.get("gpu")
    rebuild = rebuild.format(gpu if isinstance(gpu, str) and gpu.isprintable() else "cpu")
    stated, whole = "contract" in manifest, "a whole manifest, with this key"
    require(stated, field=_FIELD, value="no contract in it", allowed=whole, fix=rebuild)
    contract, field = manifest["contract"], "engine:contract"
    good = type(contract) is int and contract == CONTRACT
    require(good, field=field, value=contract, allowed=f"contract version {CONTRACT}, in {MANIFEST}", fix=rebuild)
    try:
        _Manifest.model_validate(manifest)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in first["loc"] if part not in ("[key]", "cpu", "cuda"))
        missing = first["type"] == "missing"
        raise FieldError(
            field=f"{_FIELD}:{key}",
            value=None if missing else first["input"],
            allowed=whole if missing else f"a whole manifest: {first['msg']}",
            fix=rebuild,
        ) from None
    for key in ("pieces", "threads") if manifest["backend"] == "torch_cpu" else ():
        stated = key in manifest["runtime"]
        require(stated, field=f"{_FIELD}:runtime.{key}", value=None, allowed=whole, fix=rebuild)
    needed = _ALWAYS if manifest["backend"] != "edge_llm" else ()
    lost = [name for name in needed if name not in manifest["files"]]
    if manifest["runtime"].get("pieces") == "compiled" and not any(n.startswith("pieces/") for n in manifest["files"]):
        lost.append("pieces/*.pt2")
    require(
        not lost,
        field=f"{_FIELD}:files",
        value=f"without {', '.join(lost)}",
        allowed="every file that the build wrote",
        fix=rebuild,
    )
    return manifest
