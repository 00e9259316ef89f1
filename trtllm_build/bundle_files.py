"""A bundle's files, judged before an engine reads them: what the manifest lists, nothing else, and whole.

Cheap checks come first: where a file lies and of which kind and length it is, then what the small ones say, then the
headers of the weights; only then is everything read, for its hash.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from nemo_diffgemma.checkpoint import TOKENIZER_FILES, text_tensors
from nemo_diffgemma.errors import FieldError, require
from nemo_diffgemma.files import file_sha256, some
from nemo_diffgemma.weight_files import read_header
from trtllm_build.manifest import MANIFEST
from trtllm_build.network.weights import SCALE, weight_files
from trtllm_build.spec import INPUT_SCALES, PIECES, EngineSpec

LOG = "build.log"
INPUTS = "inputs.json"
_TOKENIZER = "tokenizer"
# What bundles are made of, beside their manifest: by name, and by folder and the names in it.
_FILES = {"architecture.json", "sampler.json", INPUTS, INPUT_SCALES, LOG, "plan", "plan.log"}
_FOLDERS = {"weights": "*.safetensors", PIECES: "*.pt2"}
_WITH_ALL_WEIGHTS = ("torch_cpu", "cuda")  # the others have theirs in a plan


def is_bundle_file(name: str) -> bool:
    """Whether a file of this name, relative to a folder, is one that bundles have there."""
    folder, _, rest = name.rpartition("/")
    if folder == _TOKENIZER:
        return rest in TOKENIZER_FILES
    return name in _FILES or (folder in _FOLDERS and fnmatch(rest, _FOLDERS[folder]))


def check_files(spec: EngineSpec, rebuild: str) -> None:
    """Refuse a bundle whose files are not those of its manifest, or not what an engine can read.

    Args:
        spec: of a bundle with a manifest.
        rebuild: what to do about it.

    Raises:
        FieldError: naming the file.
    """
    files: Mapping[str, Any] = spec.manifest["files"]
    for name, entry in files.items():
        _check_place(spec.directory, name, entry["bytes"], rebuild)
    for name in _unlisted(spec.directory, files):
        allowed = f"the files that {MANIFEST} lists"
        raise FieldError(field=f"engine:{name}", value="not listed", allowed=allowed, fix=f"remove it, or {rebuild}")
    texts = [name for name in files if name.endswith(".json")]
    _check_hashes(spec.directory, files, texts, rebuild)
    _check_weights(spec, files, rebuild)
    _check_hashes(spec.directory, files, [name for name in files if name not in texts], rebuild)


def _check_place(directory: Path, name: str, size: int, rebuild: str) -> None:
    path, field = directory / name, f"engine:{name}"
    allowed = "every file of the manifest"
    require(os.path.lexists(path), field=field, value="missing", allowed=allowed, fix=rebuild)
    try:
        inside = path.resolve().is_relative_to(directory.resolve())
    except (OSError, RuntimeError):  # links in a circle
        inside = False
    value, allowed = "a link out of the bundle", "a file in the bundle"
    require(inside, field=field, value=value, allowed=allowed, fix=rebuild)
    value = "a folder" if os.path.isdir(path) else "no regular file"
    require(os.path.isfile(path), field=field, value=value, allowed="a regular file", fix=rebuild)
    found = path.stat().st_size
    require(found == size, field=field, value=f"{found} bytes", allowed=f"{size} bytes", fix=rebuild)


def _unlisted(directory: Path, files: Mapping[str, Any]) -> Iterator[str]:
    """What loading might read and the manifest does not vouch for. Hidden names are a file system's own."""
    for path in sorted(directory.rglob("*")):
        name = path.relative_to(directory).as_posix()
        if name in files or (path.is_dir() and not path.is_symlink()) or path.name.startswith("."):
            continue
        if is_bundle_file(name) or name.split("/")[0] in (*_FOLDERS, _TOKENIZER):
            yield name


def _check_hashes(directory: Path, files: Mapping[str, Any], names: list[str], rebuild: str) -> None:
    for name in names:
        found, stated = file_sha256(directory / name), files[name]["sha256"]
        require(found == stated, field=f"engine:{name}", value=f"sha256 {found}", allowed=stated, fix=rebuild)


def _check_weights(spec: EngineSpec, files: Mapping[str, Any], rebuild: str) -> None:
    """Headers of the weights: each is one, and has the tensors that the architecture says, in its shapes."""
    headers = {
        name: read_header(spec.directory / name, f"engine:{name}", rebuild)
        for name in files
        if name.endswith(".safetensors")
    }
    if spec.manifest["backend"] == "edge_llm":
        return
    arch = spec.arch
    _ = spec.sampler  # whether it is one
    if spec.manifest["backend"] not in _WITH_ALL_WEIGHTS or spec.random_precision is not None:
        return
    shapes = text_tensors(arch)
    for file, names in weight_files(arch).items():
        name = f"weights/{file}.safetensors"
        require(name in headers, field=f"engine:{name}", value="not listed", allowed="all weights", fix=rebuild)
        found = {ours: stored.shape for ours, stored in headers[name].items() if not ours.endswith(SCALE)}
        stated = {ours: shapes[theirs] for ours, theirs in names.items()}
        wrong = sorted(ours for ours in found.keys() | stated.keys() if found.get(ours) != stated.get(ours))
        allowed = "the tensors of that file, in the shapes of architecture.json"
        require(not wrong, field=f"engine:{name}", value=f"other: {some(wrong)}", allowed=allowed, fix=rebuild)
