"""Bundles that somebody made to do harm: each is refused in one line that names the file, nothing large read before."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from nemo_diffgemma.errors import FieldError
from nemo_diffgemma.files import file_sha256
from tests.support import quick_engine
from trtllm_build import load_engine
from trtllm_build.bundle import Bundle, manifest_hash

WEIGHTS = "weights/layer_001.safetensors"


@pytest.fixture(scope="module")
def pristine(text_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return quick_engine(text_checkpoint, tmp_path_factory.mktemp("pristine") / "engine")


@pytest.fixture
def bundle(pristine: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pristine, tmp_path / "bundle"))


def sign(bundle: Path, *names: str, **entries: object) -> None:
    """Make the manifest say that these files are as they are now: who made a bundle can write any."""
    manifest = json.loads((bundle / "manifest.json").read_text())
    for name in names:
        path = bundle / name
        manifest["files"][name] = {"bytes": path.stat().st_size, "sha256": file_sha256(path)}
    manifest["files"].update(entries)
    manifest["manifest_hash"] = manifest_hash(manifest)
    (bundle / "manifest.json").write_text(json.dumps(manifest))


class Touch:
    """Unpickled, it leaves a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


def contents(name: str, content: bytes) -> Callable[[Path], None]:
    def change(bundle: Path) -> None:
        (bundle / name).write_bytes(content)
        sign(bundle, name)

    return change


def edited(name: str, **values: object) -> Callable[[Path], None]:
    """A JSON file of a bundle with other values in it."""
    return lambda bundle: contents(name, json.dumps(json.loads((bundle / name).read_text()) | values).encode())(bundle)


def pickled(bundle: Path) -> None:
    contents(WEIGHTS, pickle.dumps(Touch(bundle.parent / "harm")))(bundle)


def torch_saved(bundle: Path) -> None:
    torch.save({"a": torch.ones(3)}, bundle / WEIGHTS)
    sign(bundle, WEIGHTS)


def retold(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    """Weights that are whole, with other tensors."""

    def rewrite(bundle: Path) -> None:
        tensors = load_file(bundle / WEIGHTS)
        change(tensors)
        save_file(tensors, bundle / WEIGHTS)
        sign(bundle, WEIGHTS)

    return rewrite


def sparse(bundle: Path) -> None:
    """A terabyte that takes no room, of a tensor that says to be as large."""
    header = json.dumps({"q_proj": {"dtype": "F32", "shape": [2**38], "data_offsets": [0, 2**40]}}).encode()
    with (bundle / WEIGHTS).open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(8 + len(header) + 2**40)
    size = (bundle / WEIGHTS).stat().st_size
    sign(bundle, **{WEIGHTS: {"bytes": size, "sha256": "0" * 64}})


def swapped(bundle: Path, signed: bool = False) -> None:
    one, other = bundle / WEIGHTS, bundle / "weights/head.safetensors"
    kept = one.read_bytes()
    shutil.copyfile(other, one)
    other.write_bytes(kept)
    if signed:
        sign(bundle, WEIGHTS, "weights/head.safetensors")


def linked(name: str) -> Callable[[Path], None]:
    """The same content, from beside the bundle."""

    def change(bundle: Path) -> None:
        place = bundle.parent / "elsewhere" / name
        place.parent.mkdir(parents=True)
        shutil.move(bundle / name, place)
        (bundle / name).symlink_to(place)

    return change


def circle(bundle: Path) -> None:
    (bundle / WEIGHTS).unlink()
    (bundle / WEIGHTS).symlink_to(bundle / WEIGHTS)


def fifo(name: str) -> Callable[[Path], None]:
    def change(bundle: Path) -> None:
        (bundle / name).unlink()
        os.mkfifo(bundle / name)

    return change


def folder(bundle: Path) -> None:
    (bundle / WEIGHTS).unlink()
    (bundle / WEIGHTS).mkdir()


def listed(name: str) -> Callable[[Path], None]:
    return lambda bundle: sign(bundle, **{name: {"bytes": 1, "sha256": "0" * 64}})


def beside(name: str) -> Callable[[Path], None]:
    """A file that loading might read, and that the manifest does not list."""

    def change(bundle: Path) -> None:
        (bundle / name).parent.mkdir(exist_ok=True)
        (bundle / name).write_text("{}")

    return change


def unlisted(bundle: Path) -> None:
    manifest = json.loads((bundle / "manifest.json").read_text())
    del manifest["files"][WEIGHTS]
    (bundle / WEIGHTS).unlink()
    manifest["manifest_hash"] = manifest_hash(manifest)
    (bundle / "manifest.json").write_text(json.dumps(manifest))


def no_tokenizer_of_its_own(bundle: Path) -> None:
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["files"] = {name: entry for name, entry in manifest["files"].items() if not name.startswith("tokenizer/")}
    manifest["manifest_hash"] = manifest_hash(manifest)
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    shutil.move(bundle / "tokenizer", bundle.parent / "tokenizer")
    (bundle / "tokenizer").symlink_to(bundle.parent / "tokenizer")


def manifest_of(size: int) -> Callable[[Path], None]:
    def change(bundle: Path) -> None:
        with (bundle / "manifest.json").open("wb") as file:
            file.truncate(size)

    return change


HEADER = json.dumps({"q_proj": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
HARM: dict[str, tuple[Callable[[Path], None], str, str]] = {
    "a header of 2**63 bytes": (contents(WEIGHTS, struct.pack("<Q", 2**63) + b"{}" * 9), WEIGHTS, "whole safetensors"),
    "a header of 2**64 - 1": (contents(WEIGHTS, b"\xff" * 64), WEIGHTS, "whole safetensors"),
    "a header beyond the file": (contents(WEIGHTS, struct.pack("<Q", 10**6) + HEADER), WEIGHTS, "whole safetensors"),
    "a header alone": (contents(WEIGHTS, struct.pack("<Q", len(HEADER)) + HEADER), WEIGHTS, "whole safetensors"),
    "a header that is no JSON": (contents(WEIGHTS, struct.pack("<Q", 9) + b"[" * 9), WEIGHTS, "whole safetensors"),
    "a deep header": (contents(WEIGHTS, struct.pack("<Q", 10**5) + b"[" * 10**5), WEIGHTS, "whole safetensors"),
    "nothing": (contents(WEIGHTS, b""), WEIGHTS, "whole safetensors"),
    "a pickle": (pickled, WEIGHTS, "whole safetensors"),
    "what torch.save writes": (torch_saved, WEIGHTS, "whole safetensors"),
    "a terabyte": (sparse, WEIGHTS, "the tensors of that file"),
    "a tensor less": (retold(lambda t: t.pop("q_proj")), WEIGHTS, "q_proj"),
    "a tensor more": (retold(lambda t: t.update(more=torch.ones(1))), WEIGHTS, "more"),
    "a tensor of another shape": (retold(lambda t: t.update(q_proj=torch.ones(3))), WEIGHTS, "q_proj"),
    "files swapped": (swapped, "weights/head.safetensors|" + WEIGHTS, "bytes|sha256"),
    "files swapped, and signed": (lambda bundle: swapped(bundle, True), "weights/head.safetensors", "tensors of that"),
    "weights that are not listed": (unlisted, WEIGHTS, "not listed"),
    "a link out of the bundle": (linked(WEIGHTS), WEIGHTS, "a link out of the bundle"),
    "a folder of it is a link": (linked("tokenizer"), "tokenizer/.*", "a link out of the bundle"),
    "an unlisted tokenizer elsewhere": (no_tokenizer_of_its_own, "tokenizer", "not listed"),
    "a link to itself": (circle, WEIGHTS, "a link out of the bundle|no regular file"),
    "a FIFO": (fifo(WEIGHTS), WEIGHTS, "no regular file"),
    "a FIFO for a text": (fifo("sampler.json"), "sampler.json", "no regular file"),
    "a folder": (folder, WEIGHTS, "a folder"),
    "a path above": (listed("../manifest.json"), "manifest.json:files.*", "a path below the bundle"),
    "a path above, inside": (listed("weights/../../x"), "manifest.json:files.*", "a path below the bundle"),
    "an absolute path": (listed("/etc/hostname"), "manifest.json:files.*", "a path below the bundle"),
    "a name of 300 bytes": (listed("a" * 300), "a{300}", "missing"),
    "a name of three lines": (listed("a\nb\x1b[31m\ud800"), r"a\\nb\\x1b\[31m\\ud800", "missing"),
    "a device": (listed("../../../../dev/zero"), "manifest.json:files.*", "a path below the bundle"),
    "a tokenizer file more": (beside("tokenizer/added_tokens.json"), "tokenizer/added_tokens.json", "not listed"),
    "compiled code more": (beside("pieces/condition.pt2"), "pieces/condition.pt2", "not listed"),
    "scales more": (beside("input_scales.json"), "input_scales.json", "not listed"),
    "an architecture that is none": (contents("architecture.json", b"[]"), "architecture.json", "a JSON object"),
    "an architecture of texts": (edited("architecture.json", hidden_size="x"), "architecture.json:hidden_size", "'x'"),
    "layers that are objects": (edited("architecture.json", layer_types=[{}]), "architecture.json:layer_types", "."),
    "an architecture of more": (edited("architecture.json", evil=1), "architecture.json:evil", "not a key of it"),
    "an architecture of less": (contents("architecture.json", b"{}"), "architecture.json:bos_token_id", "missing"),
    "a sampler of more": (edited("sampler.json", self=1), "sampler.json:self", "not a key of it"),
    "a sampler of less": (contents("sampler.json", b"{}"), "sampler.json:confidence_threshold", "missing"),
    "a sampler of texts": (edited("sampler.json", t_min="0.4"), "sampler.json:t_min", "'0.4'"),
    "a manifest of a terabyte": (manifest_of(2**40), "manifest.json", "1099511627776 bytes"),
}


@pytest.mark.parametrize("name", HARM)
def test_it_is_refused(name: str, bundle: Path) -> None:
    change, file, said = HARM[name]
    change(bundle)
    for load in (load_engine, lambda bundle: Bundle.open(bundle, elsewhere=True)):
        with pytest.raises(FieldError, match=rf"^engine:({file}): .*({said})") as caught:
            load(bundle)
        assert str(caught.value).isprintable()
    assert not (bundle.parent / "harm").exists()


@pytest.mark.parametrize("name", ["a pickle", "a terabyte", "a FIFO"])
def test_the_service_says_the_same(name: str, bundle: Path) -> None:
    change, file, said = HARM[name]
    change(bundle)
    ports = [f"--{port}-port=0" for port in ("http", "grpc", "metrics", "health")]
    command = [sys.executable, "-m", "triton_repo.launcher", f"--engine={bundle}", *ports]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: engine:{file}: ")
    assert (done.stderr.count("\n"), said in done.stderr) == (1, True)


def test_what_is_beside_and_nobody_reads_stays(bundle: Path) -> None:
    (bundle / "README.md").write_text("ours")
    (bundle / "weights" / ".nfs0001").write_text("")
    (bundle / "link.safetensors").symlink_to(bundle / WEIGHTS)
    assert Bundle.open(bundle).manifest["files"][WEIGHTS]
    load_engine(bundle).close()


@pytest.mark.parametrize("moment", ["trtllm_build.bundle.check_files", "trtllm_build.runtime.engine.load_backend"])
def test_a_bundle_that_is_replaced_while_it_is_read(
    bundle: Path, pristine: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """Whole before and after: what had been read of the one and what was read of the other do not go together."""
    module, _, name = moment.rpartition(".")
    usual = getattr(sys.modules[module], name)

    def replace_first(*arguments: object) -> object:
        bundle.rename(bundle.with_name("earlier"))
        shutil.copytree(pristine, bundle)
        return usual(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(moment, replace_first)
        with pytest.raises(FieldError, match=r"^engine: .*replaced meanwhile.*once it"):
            load_engine(bundle)
    load_engine(bundle).close()


def test_a_bundle_that_goes_while_it_is_read(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trtllm_build.bundle.check_files", lambda *_: shutil.rmtree(bundle))
    with pytest.raises(FieldError, match=r"^engine: .*replaced meanwhile"):
        load_engine(bundle)
