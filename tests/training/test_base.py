"""The checkpoint that a run fine-tunes: what cannot be written again at the end is refused before anything runs."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from nemo_diffgemma.errors import FieldError
from nemo_diffgemma.training.base import check_base, files_that_travel
from nemo_diffgemma.training.config import load_config

Change = Callable[[Path], object]


@pytest.fixture
def base(text_checkpoint: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(text_checkpoint, tmp_path / "base"))


def says(name: str, text: str) -> Change:
    """A change: ``text`` in place of the file's last bracket."""

    def change(base: Path) -> None:
        path = base / name
        path.write_text(path.read_text().rstrip().removesuffix("}") + text)

    return change


def folder(name: str) -> Change:
    """A change: a folder with a file in it, in place of a file."""

    def change(base: Path) -> None:
        if (base / name).exists():
            (base / name).unlink()
        (base / name).mkdir()
        (base / name / "mine.txt").write_text("mine")

    return change


def link(name: str) -> Change:
    """A change: a link to what a cache of downloads no longer has."""

    def change(base: Path) -> None:
        (base / name).unlink(missing_ok=True)
        (base / name).symlink_to("../blobs/0123456789ab")

    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (says("config.json", ', "x": NaN}'), "config.json:x: nan"),
        (says("config.json", ', "x": {"y": [Infinity]}}'), "config.json:x.y.0: inf"),
        (says("generation_config.json", ', "temperature": -Infinity}'), "generation_config.json:temperature: -inf"),
        (says("generation_config.json", ', "t_min": 1, "t_min": 2}'), "generation_config.json:t_min: 'set twice'"),
        (folder("config.json"), "config.json: '.*: a folder' .* a JSON object"),
        (folder("generation_config.json"), "generation_config.json: '.*: a folder'"),
        (folder("training.json"), "init_from:training.json: '.*: a folder'"),
        (folder("held_out.jsonl"), "init_from:held_out.jsonl: '.*: a folder'"),
        (folder("model-00009-of-00009.safetensors"), "init_from:model-00009-of-00009.safetensors: '.*: a folder'"),
        (link("README.md"), "init_from:README.md: '.*: a link to nothing'"),
        (link("tokenizer.json"), "checkpoint:tokenizer.json: '.*: a link to nothing'|data.tokenizer: "),
        (link("chat_template.jinja"), "(init_from|data.tokenizer):chat_template.jinja: '.*: a link to nothing'"),
        (folder("special_tokens_map.json"), "init_from:special_tokens_map.json: '.*: a folder'"),
    ],
)
def test_what_could_not_be_written_at_the_end_is_refused_at_the_beginning(
    change: Change, said: str, base: Path
) -> None:
    change(base)
    (base.parent / "data.jsonl").write_text("{}\n")
    options = ["data=chat", f"data.train={base.parent / 'data.jsonl'}", "data.max_tokens=128", f"init_from={base}"]
    with pytest.raises(FieldError, match=f"^{said}"):
        load_config(options)


def test_what_is_not_ours_travels(base: Path) -> None:
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"x": {"__float__": "NaN"}}))
    (base / "notes").mkdir()
    (base / "notes" / "mine.json").write_text("NaN")
    (base / "README.md").write_text("mine")
    (base / ".git").mkdir()
    (base / "my.index.json").write_text("{}")
    # as a cache of downloads lays them out
    (base.parent / "elsewhere" / "deep").mkdir(parents=True)
    (base.parent / "elsewhere" / "logo.png").write_text("mine")
    (base / "assets").symlink_to(base.parent / "elsewhere")
    (base / "assets" / "deep" / "round").symlink_to(base)
    for folder_ in (base, base / "notes"):
        for name in ("training.json", "held_out.jsonl", "old.pth", "old.bin.index.json"):
            (folder_ / name).write_text("{}")
    check_base(base, base)
    found = files_that_travel(base, base)
    assert {"notes/mine.json", "README.md", "config.json", "tokenizer.json", "my.index.json"} <= found.keys()
    assert {name for name in found if name.startswith(("assets", "notes/"))} == {
        "assets/logo.png",
        "notes/mine.json",
        "notes/training.json",
        "notes/held_out.jsonl",
    }
    assert not {"training.json", "held_out.jsonl", "old.pth", "old.bin.index.json"} & found.keys()


@pytest.mark.skipif(os.getuid() == 0, reason="root reads everything")
def test_a_file_that_cannot_be_read_is_refused(base: Path) -> None:
    (base / "README.md").write_text("mine")
    (base / "README.md").chmod(0)
    with pytest.raises(FieldError, match=r"^init_from:README.md: '.*not readable"):
        check_base(base, base)
