"""Waiting for a bundle that something else builds, and building one at a time."""

from __future__ import annotations

import errno
import fcntl
import json
import threading
from pathlib import Path
from typing import Any

import pytest

from nemo_diffgemma.errors import FieldError
from trtllm_build.cli import main
from trtllm_build.manifest import CONTRACT
from trtllm_build.out import one_build_at_a_time as locked
from trtllm_build.out import work_directory
from trtllm_build.wait import wait_for_bundle

_HASH = "0" * 64
_WHOLE = {
    "backend": "cuda",
    "checkpoint": {"name": "checkpoint"},
    "files": {n: {"bytes": 1, "sha256": _HASH} for n in ("architecture.json", "sampler.json")},
    "limits": {"context": 9, "slots": 1, "canvas": 8, "vocab_size": 9, "queue": 1, "cache_tokens": None},
    "manifest_hash": _HASH,
    "precision": {"name": "fp8"},
    "remaining": [],
    "runtime": {},
    "verified": "none",
}


class Clock:
    """Seconds that pass only by sleeping; ``events`` happen on the way."""

    def __init__(self) -> None:
        self.now = 0.0
        self.events: dict[float, Any] = {}

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        for due in [due for due in self.events if due <= self.now]:
            self.events.pop(due)()


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "engines" / "h100-0a1b2c3d4e5f"


def write(out: Path, **changes: Any) -> None:
    """A manifest as a build for an H100 writes it, in the parts that waiting reads."""
    out.mkdir(parents=True)
    hardware = {"kind": "cuda", "name": "H100", "sm": 90}
    (out / "manifest.json").write_text(
        json.dumps(_WHOLE | {"contract": CONTRACT, "gpu": "h100", "hardware": hardware} | changes)
    )


def wait(out: Path, timeout_s: float, clock: Clock, gpu: str = "h100") -> list[str]:
    said: list[str] = []
    wait_for_bundle(out, gpu, timeout_s, said.append, clock=clock, sleep=clock.sleep)
    return said


def test_it_ends_when_the_manifest_is_there(out: Path) -> None:
    clock = Clock()
    clock.events[100] = lambda: write(out)
    said = wait(out, 3600, clock)
    assert 100 <= clock.now < 105
    assert [line.partition(":")[0] for line in said[:-1]] == [
        f"waiting for {out}/manifest.json"
    ] * 4  # at 0, 30, 60, 90
    assert said[-1] == f"engine {out} is there, after 100 s"


def test_it_says_what_there_is_instead(out: Path) -> None:
    clock = Clock()
    clock.events[10] = lambda: out.parent.mkdir()
    clock.events[50] = lambda: work_directory(out, '{"gpu": "h100"}', print)
    clock.events[70] = lambda: (work_directory(out, '{"gpu": "h100"}', print) / "architecture.json").touch()
    clock.events[95] = lambda: write(out)
    said = wait(out, 3600, clock)
    assert [line.partition(" s, ")[2] for line in said[:-1]] == [
        f"{out.parent} does not exist",
        "no build has begun",
        "a build is under way, or was stopped (1 files so far)",
        "a build is under way, or was stopped (2 files so far)",
    ]


def test_it_gives_up(out: Path) -> None:
    clock = Clock()
    with pytest.raises(
        TimeoutError, match=rf"no engine in {out} after 60 s: .*; look at what builds it, or build it with"
    ):
        wait(out, 60, clock)
    assert clock.now == 60


def test_without_patience_it_looks_once(out: Path) -> None:
    clock = Clock()
    with pytest.raises(TimeoutError):
        wait(out, 0, clock)
    assert clock.now == 0
    write(out)
    assert wait(out, 0, clock) == [f"engine {out} is there, after 0 s"]


def test_one_for_another_gpu_is_refused(out: Path) -> None:
    write(out)
    with pytest.raises(FieldError) as error:
        wait(out, 3600, Clock(), gpu="dgx_spark")
    assert str(error.value) == (
        "engine:gpu: 'h100, for an H100 GPU (SM 90)' cannot be used; allowed: dgx_spark, which this pod or machine "
        "is meant for; "
        f"fix: build it again with `diffgemma-engine build gpu=dgx_spark checkpoint=DIR out={out}`"
    )


def test_an_older_contract_or_half_a_manifest_is_refused(out: Path) -> None:
    write(out, contract=CONTRACT - 1)
    with pytest.raises(FieldError, match="engine:contract"):
        wait(out, 3600, Clock())
    (out / "manifest.json").write_text("{")
    with pytest.raises(FieldError, match=r"engine:manifest\.json: '.*Expecting property name"):
        wait(out, 3600, Clock())
    (out / "manifest.json").write_text("{}")
    with pytest.raises(FieldError, match=r"engine:manifest\.json: 'no contract in it'"):
        wait(out, 3600, Clock())
    for hardware in ({}, {"kind": "cuda"}, {"kind": "cuda", "name": "", "sm": 90}, None, []):
        (out / "manifest.json").write_text(
            json.dumps(_WHOLE | {"contract": CONTRACT, "gpu": "h100", "hardware": hardware})
        )
        with pytest.raises(FieldError, match=r"engine:manifest\.json:hardware.* a whole manifest"):
            wait(out, 3600, Clock())


@pytest.mark.parametrize("seconds", [-1.0, float("nan")])
def test_no_time_to_wait(out: Path, seconds: float) -> None:
    with pytest.raises(FieldError, match="--timeout: .* seconds, 0 or more"):
        wait(out, seconds, Clock())


def test_the_command(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="1"):
        main(["wait", str(out), "--gpu", "h100"])
    assert "no engine in" in capsys.readouterr().err
    write(out)
    main(["wait", str(out), "--gpu", "h100", "--timeout", "5"])
    assert "is there" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="2"):
        main(["wait", str(out), "--gpu", "dgx-spark"])
    assert "allowed: dgx_spark" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main(["wait", str(out), "--gpu", "a100"])
    assert "allowed: cpu, dgx_spark, h100" in capsys.readouterr().err


def test_what_a_build_wrote_is_what_is_waited_for(demo_bundle: Path) -> None:
    assert wait(demo_bundle, 0, Clock(), gpu="cpu") == [f"engine {demo_bundle} is there, after 0 s"]


def test_a_second_build_of_the_same_bundle_waits(out: Path) -> None:
    said: list[str] = []
    order: list[str] = []

    def second() -> None:
        with locked(out, said.append):
            order.append("second")

    with locked(out, said.append):
        thread = threading.Thread(target=second)
        thread.start()
        with locked(out.with_name("other"), said.append):
            order.append("another bundle")
        thread.join(0.5)
        order.append("first")
    thread.join(10)
    assert order == ["another bundle", "first", "second"]
    assert said == [f"wait     {out}: another build of this bundle is under way"]


def test_a_file_system_without_locks_is_no_obstacle(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []

    def refuse(_file: object, _operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with locked(out, said.append):
        pass
    lock = out.with_name(f".{out.name}.diffgemma.lock")
    assert said == [f"warning  {lock}: this file system has no locks; nothing else may build this bundle now"]
