"""What a build may replace, what it leaves alone, how its files may be read, and how it ends when it is stopped."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from math import prod
from pathlib import Path

import pytest
from safetensors.torch import load_file

from nemo_diffgemma.checkpoint import Checkpoint, text_tensors
from nemo_diffgemma.errors import FieldError
from nemo_diffgemma.files import partial_directory
from nemo_diffgemma.hf_config import write_config
from nemo_diffgemma.models import RELEASED, configured
from tests.support import random_checkpoint, small_architecture
from trtllm_build.bundle import Bundle
from trtllm_build.bundle_files import INPUTS
from trtllm_build.cli import main
from trtllm_build.manifest import MANIFEST
from trtllm_build.out import check_space, work_directory, working
from trtllm_build.pipeline import build, needed_bytes
from trtllm_build.plan import make_plan


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_checkpoint(tmp_path_factory.mktemp("model") / "checkpoint", small_architecture())


def built(checkpoint: Path, out: Path, *overrides: str) -> list[str]:
    """Build, and return what was said."""
    lines: list[str] = []
    given = overrides or ("gpu=cpu", "compile=false")
    build(make_plan([*given, f"checkpoint={checkpoint}", f"out={out}"]), lines.append)
    return lines


def refusal(checkpoint: Path, out: Path | str, *overrides: str) -> str:
    """The one line that a build is refused with, before it says anything."""
    lines: list[str] = []
    given = overrides or ("gpu=cpu", "compile=false")
    with pytest.raises(FieldError, match=r"^out: ") as caught:
        build(make_plan([*given, f"checkpoint={checkpoint}", f"out={out}"]), lines.append)
    assert lines == []
    return str(caught.value)


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture
def mine(tmp_path: Path) -> Iterator[Path]:
    """A folder of the user's with files whose names a build once took for its own; they stay as they are."""
    folder = tmp_path / "work"
    for name in (
        "engine.partial",
        "engine.old",
        "engine-hf.partial",
        ".engine.partial",
        ".engine.0123456789ab.partial",
    ):
        (folder / name).mkdir(parents=True)
        (folder / name / "notes.txt").write_text("mine")
    (folder / "engine.lock").write_text("mine")
    (folder / ".engine.0123456789ab.old").mkdir()
    before = contents(folder)
    yield folder
    assert before.items() <= contents(folder).items()


# -- what else a user has --------------------------------------------------------------------------------------------


def test_files_beside_the_bundle_stay(checkpoint: Path, mine: Path) -> None:
    built(checkpoint, mine / "engine")
    built(checkpoint, mine / "engine", "gpu=cpu", "compile=false", "precision=bf16")
    assert Bundle.open(mine / "engine").manifest["precision"]["name"] == "bf16"
    assert not list(mine.glob(".engine.*.partial/inputs.json"))


def test_a_folder_with_other_files_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "engine"
    out.mkdir()
    built(checkpoint, out)  # an empty one is not
    (out / "notes.txt").write_text("mine")
    (out / "weights" / "mine.safetensors").write_text("mine")
    before = contents(tmp_path)
    message = refusal(checkpoint, out, "gpu=cpu", "compile=false", "precision=bf16")
    assert "engine holds notes.txt, weights/mine.safetensors' cannot be used; allowed: a new or empty folder" in message
    assert "nothing was changed" in message
    assert contents(tmp_path) == before


def test_a_folder_beside_it_for_the_quantised_checkpoint_is_looked_at_too(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "engine-hf").mkdir()
    (tmp_path / "engine-hf" / "config.json").write_text("{}")
    assert "engine-hf holds config.json" in refusal(checkpoint, tmp_path / "engine", "gpu=h100")
    assert contents(tmp_path) == {"engine-hf/config.json": b"{}"}


def test_the_checkpoint_is_not_built_over(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = Path(shutil.copytree(checkpoint, tmp_path / "models" / "gemma-hf"))
    before = contents(tmp_path)
    for out in (own, own.parent, own / ".." / "gemma-hf"):
        assert f"a folder that does not hold {own}, which the build reads" in refusal(own, out)
    assert "a folder that does not hold" in refusal(own, tmp_path / "models" / "gemma", "gpu=h100")
    link = tmp_path / "link"
    link.symlink_to(own)
    assert "a folder that does not hold" in refusal(own, link)
    link.unlink()
    monkeypatch.chdir(own)
    assert "a folder that does not hold" in refusal(Path("."), ".")
    assert contents(tmp_path) == before


def test_paths_that_are_no_place(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    assert "a folder, or a path where nothing is" in refusal(checkpoint, file)
    assert "a path below folders" in refusal(checkpoint, file / "engine")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert "the one you are in" in refusal(checkpoint, ".")
    assert "the one you are in" in refusal(checkpoint, "..")
    assert "'' cannot be used; allowed: a path; fix: pass out=PATH" in refusal(checkpoint, "")
    assert "below the mount point" in refusal(checkpoint, "/dev/shm")
    assert not list(tmp_path.rglob("*.lock"))
    assert file.read_text() == "mine"


def test_a_folder_named_by_a_number(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hydra reads 2024 as a number, and 1e3 as another."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(checkpoint, tmp_path / "2024")
    plan = make_plan(["gpu=cpu", "checkpoint=2024", "out=1e3"])
    assert (plan.checkpoint, plan.out) == (Path("2024"), Path("1e3"))
    assert make_plan(["gpu=cpu", "checkpoint=2024", "out=null"]).out == Path("engines/2024/cpu-fp32")


@pytest.mark.skipif(os.getuid() != 0, reason="a user who may not write anywhere is only made by root")
def test_a_place_that_cannot_be_written(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir(mode=0o755)
    tmp_path.chmod(0o755)
    code = f"""
import os
from trtllm_build.out import check_place
from pathlib import Path
os.setuid(65534)
try:
    check_place(Path({str(tmp_path / "theirs" / "engine")!r}), [])
except ValueError as error:
    print(error)
"""
    for folder in tmp_path.parents:
        folder.chmod(folder.stat().st_mode | 0o011)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "a folder that user 65534 can write to, which" in done.stdout, done.stderr


def test_a_volume_that_is_too_small(tmp_path: Path) -> None:
    free = shutil.disk_usage(tmp_path).free
    check_space(tmp_path / "a" / "b", free // 2)
    with pytest.raises(
        FieldError, match=r"out: '.*/a/b, with .* GB left on its volume' .* which the bundle takes; fix"
    ):
        check_space(tmp_path / "a" / "b", 2 * free + 2**30)


def test_what_the_released_model_takes_is_known_beforehand(tmp_path: Path) -> None:
    """From a checkpoint of its shapes: a file of 50 GB with nothing in it."""
    arch, header, end = configured(RELEASED), {}, 0
    for name, shape in text_tensors(arch).items():
        start, end = end, end + 2 * prod(shape)
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)
    (tmp_path / "config.json").write_text(json.dumps(write_config(arch.with_changes(vision_config=None), "bfloat16")))
    checkpoint = Checkpoint(tmp_path)

    def needed(*given: str) -> float:
        return needed_bytes(make_plan([*given, f"checkpoint={tmp_path}"]), checkpoint) / 1e9

    assert needed("gpu=cpu", "precision=fp32") == pytest.approx(101, abs=0.5)
    assert needed("gpu=cpu", "precision=bf16") == pytest.approx(50.6, abs=0.5)
    assert needed("gpu=h100") == pytest.approx(26.1 + 26.1, abs=0.5)  # with the unified layout
    assert needed("gpu=h100", "unified=false") == pytest.approx(26.1, abs=0.5)
    assert needed("gpu=dgx-spark", "precision=bf16") == pytest.approx(2 * 50.6, abs=0.5)


# -- what is built again ---------------------------------------------------------------------------------------------


def test_a_damaged_bundle_is_built_again_and_kept(checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "engine"
    built(checkpoint, out)
    for number, (name, what) in enumerate(
        [
            ("weights/head.safetensors", "weights/head.safetensors"),
            ("build.log", "build.log"),
            (MANIFEST, "manifest.json lists no files"),
        ],
        1,
    ):
        (out / name).write_text("{")
        broken = contents(out)
        lines = built(checkpoint, out)
        Bundle.open(out)
        kept = tmp_path / f"engine.damaged-{number}"
        assert contents(kept) == broken
        assert f"bundle   {out} was damaged ({what}): it is kept as {kept}" in lines
    (out / MANIFEST).write_text("[" * 100_000)
    built(checkpoint, out)
    Bundle.open(out)
    (out / MANIFEST).write_text("{}")
    (out / "notes.txt").write_text("mine")
    broken = contents(out)
    assert "a new or empty folder, or one written here before" in refusal(checkpoint, out)
    assert contents(out) == broken


def test_a_bundle_that_lacks_a_file_is_built_again(checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "engine"
    built(checkpoint, out)
    (out / "weights" / "layer_000.safetensors").unlink()
    built(checkpoint, out)
    Bundle.open(out)
    assert [p.name for p in tmp_path.iterdir() if not p.name.endswith(".lock")] == ["engine"]


def test_damaged_weights_are_not_taken_over(checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "engine"
    built(checkpoint, out)
    right = {n: t.clone() for n, t in load_file(out / "weights" / "layer_000.safetensors").items()}
    data = bytearray((out / "weights" / "layer_000.safetensors").read_bytes())
    data[-4:] = b"\0\0\0\0"
    (out / "weights" / "layer_000.safetensors").write_bytes(data)
    built(checkpoint, out)
    found = load_file(out / "weights" / "layer_000.safetensors")
    assert all((found[name] == right[name]).all() for name in right)


def test_what_builds_of_other_inputs_left_is_removed(checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "engine"
    left = work_directory(out, '{"gpu": "other"}', print)
    (left / "weights").mkdir()
    like = tmp_path / ".engine.0123456789ab.partial"  # what it says of itself is not its name
    like.mkdir()
    (like / INPUTS).write_text('{"gpu": "other"}')
    other = work_directory(tmp_path / "engine-2", '{"gpu": "other"}', print)
    lines = built(checkpoint, out)
    assert any(line.startswith(f"remove   {left}") for line in lines)
    assert [p.is_dir() for p in (left, like, other)] == [False, True, True]


def test_a_folder_of_somebody_elses_where_work_would_go(tmp_path: Path) -> None:
    stamp = '{"gpu": "cpu"}'
    place = partial_directory(tmp_path / "engine", stamp)
    place.mkdir()
    work_directory(tmp_path / "engine", stamp, print)
    (place / INPUTS).write_text("something else")
    with pytest.raises(FieldError, match=r"out: .*nothing under that name but what a build left there"):
        work_directory(tmp_path / "engine", stamp, print)


def test_a_work_folder_whose_first_file_did_not_fit_or_was_not_finished(tmp_path: Path) -> None:
    """A kernel's limit on the size of files stands for a full volume."""
    stamp, out = json.dumps({"gpu": "cpu"}), tmp_path / "engine"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1, before[1]))
    try:
        with pytest.raises(OSError, match="too large: .*/engine'$"), working(out, stamp, print):
            pass
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.iterdir()) == []
    place = partial_directory(out, stamp)
    place.mkdir()
    (place / f".{INPUTS}.0123456789ab.partial").write_text('{"gp')
    assert work_directory(out, stamp, print) == place
    assert [p.name for p in place.iterdir()] == [INPUTS]


def test_halves_of_a_killed_build_do_not_get_into_the_bundle(checkpoint: Path, tmp_path: Path) -> None:
    out, given = tmp_path / "engine", ("gpu=cpu", "compile=false")
    built(checkpoint, out, *given)
    stamp = (out / INPUTS).read_text()
    shutil.rmtree(out)
    work = work_directory(out, stamp, print)
    for name in ("weights/.head.safetensors.0123456789ab.partial", "pieces/partial_condition.pt2"):
        (work / name).parent.mkdir(exist_ok=True)
        (work / name).write_text("half")
    (work / ".unified.0123456789ab.partial").mkdir()
    lines = built(checkpoint, out, *given)
    assert any(line.startswith("resume") for line in lines)
    assert set(Bundle.open(out).manifest["files"]) == {p for p in contents(out) if p != MANIFEST}
    assert not list(out.rglob("*partial*"))


# -- modes -----------------------------------------------------------------------------------------------------------


def check_modes(paths: list[Path], mask: int) -> None:
    for path in paths:
        wanted = (0o777 if path.is_dir() else 0o666) & ~mask
        assert path.stat().st_mode & 0o777 == wanted, f"{path} {path.stat().st_mode:o}"


@pytest.mark.parametrize("mask", [0o022, 0o027])
def test_everything_follows_the_umask(text_checkpoint: Path, tmp_path: Path, mask: int) -> None:
    """Weights too, which safetensors makes for their owner alone."""
    before = os.umask(mask)
    try:
        built(text_checkpoint, tmp_path / "h100", "gpu=h100")
    finally:
        os.umask(before)
    found = list(tmp_path.rglob("*"))
    assert {"model-00001-of-00001.safetensors", "head.safetensors", "tokenizer.json"} <= {p.name for p in found}
    check_modes(found, mask)


def test_compiled_pieces_follow_the_umask(demo_bundle: Path) -> None:
    mask = os.umask(0)
    os.umask(mask)
    found = [demo_bundle, *demo_bundle.rglob("*")]
    assert any(path.suffix == ".pt2" for path in found)
    check_modes(found, mask)


def test_manifests_list_every_file(text_checkpoint: Path, tmp_path: Path) -> None:
    built(text_checkpoint, tmp_path / "h100", "gpu=h100")
    for name in ("h100", "h100-hf"):
        folder = tmp_path / name
        listed = json.loads((folder / MANIFEST).read_text())["files"]
        assert {n: len(data) for n, data in contents(folder).items() if n != MANIFEST} == {
            n: entry["bytes"] for n, entry in listed.items()
        }
    assert "build.log" in json.loads((tmp_path / "h100" / MANIFEST).read_text())["files"]
    built(text_checkpoint, tmp_path / "h100", "gpu=h100", "gpu.limits.slots=3")


# -- when it is stopped ----------------------------------------------------------------------------------------------


def _heed() -> None:
    """What runs tests in the background ignores it, and so would what they start."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_build_that_is_told_to_end(checkpoint: Path, tmp_path: Path, number: int, status: int) -> None:
    out = tmp_path / "engine"
    command = [sys.executable, "-m", "trtllm_build", "build", "gpu=cpu", f"checkpoint={checkpoint}", f"out={out}"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=_heed
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        for line in process.stdout:
            if line.startswith("compile"):
                break
        process.send_signal(number)
        said = process.stdout.read() + process.stderr.read()
    assert process.returncode == status, said
    assert "Traceback" not in said
    assert said.endswith("run the same command again: it goes on where it stopped\n")
    assert not out.exists()
    (work,) = tmp_path.glob(".engine.*.partial")
    assert len(list((work / "weights").glob("*.safetensors"))) == 4
    assert work_directory(out, (work / INPUTS).read_text(), print) == work


def test_a_volume_that_fills_up(checkpoint: Path, tmp_path: Path) -> None:
    """Stands for it: a limit on the size of files, past which the kernel refuses to write as well."""

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**14, 2**14))

    given = ["build", "gpu=cpu", "compile=false", f"checkpoint={checkpoint}", f"out={tmp_path / 'engine'}"]
    command = [sys.executable, "-m", "trtllm_build", *given]
    done = subprocess.run(command, capture_output=True, text=True, check=False, preexec_fn=limit)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: ")
    assert done.stderr.endswith("run the same command again: it goes on where it stopped\n")
    assert not list(tmp_path.rglob("weights/*.partial"))


def test_waiting_that_is_interrupted(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "trtllm_build", "wait", str(tmp_path), "--gpu", "h100", "--timeout", "60"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=_heed
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("waiting for")
        time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate()
    assert (process.returncode, said) == (130, "stopped: interrupted\n")


@pytest.mark.parametrize(
    "arguments",
    [
        ["sizes", "nonsense"],
        ["sizes", ""],
        ["sizes", "/dev/null"],
        ["inspect", "nonsense"],
        ["inspect", "/dev/null"],
        ["wait", "/dev/null", "--gpu", ""],
        ["wait", "/dev/null", "--gpu", "cpu", "--timeout", "nan"],
        ["build", "checkpoint="],
        ["build", "checkpoint=/dev/null"],
        ["build"],
        ["build", "gpu.sm=100", "checkpoint=/dev/null"],
        ["build", "calibration=", "checkpoint=/dev/null"],
    ],
)
def test_mistakes_are_one_line(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    assert "; fix: " in said


def test_what_other_folders_have_a_manifest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for text in ("", "[]", '{"files": {}}', '{"contract": 3}', "null", "\xff"):
        (tmp_path / MANIFEST).write_bytes(text.encode("latin-1"))
        with pytest.raises(SystemExit, match="2"):
            main(["inspect", str(tmp_path)])
        assert "engine:manifest.json:" in capsys.readouterr().err
