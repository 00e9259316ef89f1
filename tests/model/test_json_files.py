"""JSON objects from outside: what is refused, and by which name."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from nemo_diffgemma.errors import FieldError
from nemo_diffgemma.json_files import read_object


def refusal(path: Path) -> str:
    with pytest.raises(FieldError) as caught:
        read_object(path, "config.json", "export it again")
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'{"a": NaN}', "config.json:a: nan cannot be used; allowed: what JSON has"),
        (b'{"a": {"b": [1, -Infinity]}}', "config.json:a.b.1: -inf cannot be used"),
        (b'{"a": 1e999}', "config.json:a: inf cannot be used"),
        (b'{"a": 1, "b": {"c": 1, "c": 2}}', "config.json:c: 'set twice' cannot be used"),
        (b'{"a": %s}' % (b"9" * 5000), "Exceeds the limit"),
        (b"[1]", "list' cannot be used; allowed: a JSON object; fix: export it again"),
        (b"null", "NoneType' cannot be used"),
        (b"", "Expecting value"),
        (b"{", "Expecting property name"),
        (b'\xef\xbb\xbf{"a": 1}', "BOM"),
        (b'{"a": "\xe9"}', "'utf-8' codec can't decode byte 0xe9"),
        ('{"a": 1}'.encode("utf-16"), "'utf-8' codec can't decode byte 0xff"),
        (b'{"a": ' * 100_000, "too deep in each other"),
        (b'{"a": ' * 200 + b"1" + b"}" * 200, "more than 100 brackets in each other"),
    ],
)
def test_what_is_not_a_json_object_is_refused_by_file_and_key(content: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(content)
    assert said in refusal(tmp_path / "config.json")


def test_what_is_not_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    assert "folder: a folder' cannot be used" in refusal(tmp_path / "folder")
    (tmp_path / "loop").symlink_to("loop")
    assert "loop: Too many levels of symbolic links" in refusal(tmp_path / "loop")
    (tmp_path / "dangling").symlink_to("nowhere")
    assert "dangling: No such file or directory" in refusal(tmp_path / "dangling")
    os.mkfifo(tmp_path / "pipe")
    assert "pipe: no regular file" in refusal(tmp_path / "pipe")


@pytest.mark.skipif(os.getuid() == 0, reason="root reads everything")
def test_a_file_of_somebody_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text("{}")
    path.chmod(0)
    assert "not readable for user" in refusal(path)


def test_an_object_is_read_as_it_is(tmp_path: Path) -> None:
    value = {"a": [1, 2.5, None, True, "\u2028é", {"__float__": "NaN"}], "b": {}}
    (tmp_path / "config.json").write_text(json.dumps(value), encoding="utf-8")
    assert read_object(tmp_path / "config.json", "config.json", "") == value
