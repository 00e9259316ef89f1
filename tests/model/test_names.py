"""Names that are refused, however they are given: on a command line, by a variable, a pattern, a link, a folder."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from nemo_diffgemma.conversations.records import find_files
from nemo_diffgemma.errors import FieldError, printable
from nemo_diffgemma.hydra_config import compose_config
from nemo_diffgemma.names import check_name, check_path
from nemo_diffgemma.training.config import CONF

BAD = ["a\udce9", "a\nb", "a\tb", "\x1b[31mred", "a\x7f", "a\x85", "a\u2028b", "a\0"]
GOOD = ["a b", "größe 日本 👩🏽‍🔧", "50% = #1, 'x' \"y\"", "\u05e9\u200f", "a\u00a0b", "~", "-"]


def one_line(error: pytest.ExceptionInfo[FieldError]) -> bool:
    return str(error.value).isprintable()


@pytest.mark.parametrize("name", BAD, ids=ascii)
def test_names_that_are_refused(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        FieldError, match=r"^out: .*allowed: a name (in UTF-8|without line ends).*fix: rename it"
    ) as caught:
        check_name("out", name)
    assert one_line(caught)
    for override in (
        f"run={name}",
        f"output={name}",
        f"init_from={name}",
        f"data.train=[{name}]",
        f"data.tokenizer={name}",
    ):
        with pytest.raises(
            FieldError, match=r"^(run|output|init_from|data.train|data.tokenizer): .*rename it"
        ) as caught:
            compose_config(CONF, "train", [override, "data=chat"])
        assert one_line(caught)
    with pytest.raises(FieldError, match=r"^command line: ") as caught:
        compose_config(CONF, "train", [f"{name}=1"])
    assert one_line(caught)


@pytest.mark.parametrize("name", [name for name in BAD if "\0" not in name], ids=ascii)
def test_where_names_come_from(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / name
    folder.mkdir()
    (tmp_path / "link").symlink_to(folder)
    with pytest.raises(FieldError, match="^out: .*rename it"):
        check_path("out", str(tmp_path / "link" / "x"))
    monkeypatch.setenv("SOMEWHERE", str(folder))
    monkeypatch.setenv("HOME", str(folder))
    for override in ("run=${oc.env:SOMEWHERE}/x", "run=~/x", f"run={tmp_path}/link/x"):
        with pytest.raises(FieldError, match="^run: .*rename it"):
            compose_config(CONF, "train", [override])
    (folder / "x.jsonl").write_text("")
    with pytest.raises(FieldError, match="^data.train: .*rename it"):
        find_files("data.train", [f"{tmp_path}/*/x.jsonl"])
    monkeypatch.chdir(folder)
    with pytest.raises(FieldError, match="^the folder you are in: .*rename it"):
        compose_config(CONF, "train", [])


@pytest.mark.parametrize("key", ["run", "output", "init_from", "data.train", "data.tokenizer"])
def test_a_path_that_hydra_would_take_for_missing_is_refused(key: str) -> None:
    with pytest.raises(FieldError, match=rf"^{key}: '\?\?\?' .*fix: pass {key}=./"):
        compose_config(CONF, "train", [f"{key}=???"])


@pytest.mark.parametrize("name", GOOD)
def test_any_other_name_is_taken(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / name)
    check_path("out", "x")
    assert compose_config(CONF, "train", [f"run={tmp_path}/{name}/x"]).run == f"{tmp_path}/{name}/x"


def test_a_folder_that_is_gone_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(FieldError, match="the folder you are in: .*No such file"):
        compose_config(CONF, "train", [])


def test_a_pattern_drops_nothing_in_silence(tmp_path: Path) -> None:
    """A link to nothing is a shard that is missing."""
    (tmp_path / "1.jsonl").write_text("")
    (tmp_path / "2.jsonl").symlink_to("nowhere")
    with pytest.raises(FieldError, match=r"^data.train: '\S*2.jsonl' .*read twice.*fix: remove it, or pass a pattern"):
        find_files("data.train", [f"{tmp_path}/*.jsonl"])
    (tmp_path / "2.jsonl").unlink()
    os.mkfifo(tmp_path / "3.jsonl")
    with pytest.raises(FieldError, match=r"^data.train: '\S*3.jsonl' .*read twice"):
        find_files("data.train", [f"{tmp_path}/*.jsonl"])


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("/dev/null", "a file that can be read twice"),
        ("/dev/stdin", "a file that can be read twice"),
        ("https://example.org/x.jsonl?download=true", "a file on this machine.*fix: fetch it first"),
        ("hf://datasets/a/b.parquet", "a file on this machine.*fix: fetch it first"),
        ("a" * 300, "a path that can be looked at .File name too long"),
    ],
)
def test_what_is_no_file_is_refused(given: str, said: str) -> None:
    with pytest.raises(FieldError, match=rf"^data.train: .*{said}"):
        find_files("data.train", [given])


def test_what_cannot_be_printed_is_escaped() -> None:
    assert printable("a\udce9\n\x1b[0m\u2028ü") == r"a\udce9\n\x1b[0m\u2028ü"
    deep: list[object] = []
    for _ in range(100_000):
        deep = [deep]
    assert "a list in which brackets are too deep" in str(FieldError("x", deep, "less", "flatten it"))
    while deep:
        deep = deep.pop()  # type: ignore[assignment]  # its own end would be a recursion too


def test_the_end_of_a_command_is_printed_whatever_the_terminal_knows() -> None:
    command = "from nemo_diffgemma.quiet import quiet_start; quiet_start(); print('gr\xf6\xdfe', chr(0xDCE9))"
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    said = subprocess.run([sys.executable, "-c", command], env=environment, capture_output=True, check=True).stdout
    assert said == b"gr\\xf6\\xdfe \\udce9\n"
