"""The engine bundle: a directory with a hashed manifest, checked before a byte of weight is read.

::

    engines/<model>/<gpu>-<precision>/
        manifest.json        everything below is described and hashed here
        architecture.json    shapes of the network
        sampler.json         sampler defaults of the checkpoint
        weights/*.safetensors
        pieces/*.pt2         compiled parts of the network; absent when there was no compiler
        tokenizer/           absent when the checkpoint has none
        inputs.json          what it was built from; a stopped build is known by it
        build.log
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from nemo_diffgemma.errors import FieldError, require
from nemo_diffgemma.files import file_entries, write_json
from trtllm_build.bundle_files import LOG, check_files
from trtllm_build.hardware import has_gpu, this_machine
from trtllm_build.limits import Limits
from trtllm_build.manifest import CONTRACT, MANIFEST, read_manifest
from trtllm_build.spec import PIECES, EngineSpec

# Parts of the manifest that differ from one build of the same inputs to the next.
_VOLATILE = ("manifest_hash", "measured", "runtime", "verified", "remaining", "log")


@dataclass(frozen=True)
class Bundle:
    """An opened bundle: its manifest is whole, its files are those that were built, and they are for this machine.

    Raises:
        FieldError: when the bundle is missing, damaged, of another contract version, or for other hardware.
    """

    directory: Path
    manifest: dict[str, Any]

    @classmethod
    def open(cls, directory: str | Path, elsewhere: bool = False) -> Self:
        """Read and check ``directory``; see the class for what is raised.

        Args:
            directory: the bundle.
            elsewhere: accept one that is for other hardware: it can be looked at, not run.
        """
        with unchanged(Path(directory)):
            return cls._open(Path(directory), elsewhere)

    @classmethod
    def _open(cls, directory: Path, elsewhere: bool) -> Self:
        path = directory / MANIFEST
        require(
            os.path.lexists(path),
            field="engine",
            value=str(directory),
            allowed=f"a bundle directory with a {MANIFEST}",
            fix="run `make engine GPU=cpu`, or name the directory it wrote",
        )
        manifest = read_manifest(directory)
        rebuild, stated = _rebuild(manifest), manifest["manifest_hash"]
        require(
            manifest_hash(manifest) == stated,
            field="engine:manifest_hash",
            value=stated,
            allowed=manifest_hash(manifest),
            fix=rebuild,
        )
        bundle = cls(directory, manifest)
        if not elsewhere:
            bundle._check_hardware()
        check_files(bundle.spec, rebuild)
        return bundle

    def _check_hardware(self) -> None:
        built_for = self.manifest["hardware"]
        if built_for["kind"] == "cuda":
            self._check_gpu(built_for)
            return
        here = this_machine()
        fix = f"run `make engine GPU=cpu` here, or load it on {describe(built_for)}"
        require(
            all(built_for.get(key) == here[key] for key in ("kind", "machine", "system")),
            field="engine:hardware",
            value=f"built for {describe(built_for)}",
            allowed=f"{describe(here)}, which this machine is",
            fix=fix,
        )
        missing = sorted(set(built_for["features"]) - set(here["features"]))
        require(
            not missing,
            field="engine:hardware",
            value=f"compiled for a CPU with {', '.join(missing)}",
            allowed="what this machine's CPU has",
            fix=fix,
        )

    def _check_gpu(self, built_for: dict[str, Any]) -> None:
        import torch  # an engine for a CPU is checked ten times faster without it

        has_any = torch.cuda.is_available()
        require(
            has_gpu(built_for["sm"]),
            field="engine:hardware",
            value=f"built for {describe(built_for)}",
            allowed=f"what this machine has: {torch.cuda.get_device_name() if has_any else 'no CUDA GPU'}",
            fix=f"run `make engine GPU=cpu` here, or load it on {describe(built_for)}",
        )

    @property
    def spec(self) -> EngineSpec:
        """What an engine is made from."""
        weights = self.manifest["precision"]["name"] if self.manifest["checkpoint"].get("random") else None
        limits, runtime = Limits(**self.manifest["limits"]), dict(self.manifest["runtime"])
        return EngineSpec(self.directory, limits, runtime, weights, self.manifest)


@contextmanager
def unchanged(directory: Path) -> Iterator[None]:
    """Read a bundle in this block, all of it from one build: another may be put in its place at any moment.

    Raises:
        FieldError: when there is another at the end than at the beginning, whatever became of the block.
    """
    before = _identity(directory)
    replaced = FieldError(
        field="engine",
        value=str(directory),
        allowed="a bundle that stays while it is read; this one was replaced meanwhile",
        fix="run the same command again, once it is built",
    )
    try:
        yield
    except Exception as error:
        if _identity(directory) != before:
            raise replaced from error
        raise
    if _identity(directory) != before:
        raise replaced


def _identity(directory: Path) -> list[tuple[int, int, int, int]]:
    """What tells the folder and its manifest from others of these names; empty when there is none."""
    with suppress(OSError):
        found = (directory.stat(), (directory / MANIFEST).stat())
        return [(s.st_dev, s.st_ino, s.st_size, s.st_mtime_ns) for s in found]
    return []


def describe(hardware: dict[str, Any]) -> str:
    """A hardware entry in words."""
    if hardware["kind"] == "cpu":
        return f"a {hardware['machine']} CPU under {hardware['system']}"
    article = "an" if hardware["name"][0] in "AEFHILMNORSX" else "a"  # as a letter's name begins
    return f"{article} {hardware['name']} GPU (SM {hardware['sm']})"


def manifest_hash(manifest: dict[str, Any]) -> str:
    """SHA-256 of what the same inputs always give: the manifest without measurements, log and compiled code."""
    stable = {key: value for key, value in manifest.items() if key not in _VOLATILE}
    # a C++ compiler need not write the same bytes twice, and the log holds times
    files = manifest.get("files", {})
    stable["files"] = {n: e for n, e in files.items() if n != LOG and not n.startswith(f"{PIECES}/")}
    return hashlib.sha256(json.dumps(stable, sort_keys=True).encode()).hexdigest()


def write_manifest(directory: Path, manifest: dict[str, Any]) -> dict[str, Any]:
    """Complete ``manifest`` with the hashes of the files in ``directory`` and write it there; returns it."""
    manifest = {"contract": CONTRACT, **manifest, "files": file_entries(directory, MANIFEST)}
    manifest["manifest_hash"] = manifest_hash(manifest)
    write_json(directory / MANIFEST, manifest)
    return dict(json.loads((directory / MANIFEST).read_text(encoding="utf-8")))


def _rebuild(manifest: dict[str, Any]) -> str:
    gpu = manifest.get("gpu", "cpu")
    return f"build it again with `make engine GPU={gpu}`"
