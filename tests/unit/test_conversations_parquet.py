"""Conversations in Parquet."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from nemo_diffgemma.conversations.reader import Conversation, Reader
from nemo_diffgemma.errors import FieldError

ASKED, SAID = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}


def table(path: Path, *rows: object) -> Path:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(rows)), path, row_group_size=2)
    return path


def read(path: Path) -> list[Conversation]:
    reader = Reader([path], "data.train")
    found = list(reader)
    reader.faults.check()
    return found


def test_rows_are_records_whatever_the_file_is_called(tmp_path: Path) -> None:
    """A column that a row does not have is null there, and so is a field of a message that only others have."""
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    rows = [
        {"messages": [ASKED, SAID], "id": 1, "tools": None},
        {"messages": [ASKED, {"role": "assistant", "content": None, "tool_calls": [call]}, SAID]},
        {"messages": [ASKED | {"name": "Ada"}, SAID]},
    ]
    one, two, three = read(table(tmp_path / "x", *rows))
    assert (one.asked, one.answer, one.tools) == ((ASKED,), "b", ())
    assert two.asked[1]["tool_calls"][0]["function"] == {"name": "f", "arguments": {}}
    assert three.asked == (ASKED | {"name": "Ada"},)
    assert three.where == f"{tmp_path / 'x'}: row 3"


@pytest.mark.parametrize("row", [{"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}])
def test_other_forms_are_recognised(row: object, tmp_path: Path) -> None:
    reader = Reader([table(tmp_path / "x.parquet", row, row)], "data.train")
    assert [talk.answer for talk in reader] == ["b", "b"]
    assert reader.summary() == "2 conversations, sharegpt form"


def test_a_broken_row_is_named(tmp_path: Path) -> None:
    path = table(tmp_path / "x.parquet", {"messages": [ASKED, SAID]}, {"messages": [ASKED, SAID | {"content": " "}]})
    with pytest.raises(FieldError, match=r"x.parquet: row 2: messages\[1\].content: ' '.*text"):
        read(path)


def test_a_broken_file_is_one_line(tmp_path: Path) -> None:
    path = table(tmp_path / "x.parquet", {"messages": [ASKED, SAID]})
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(FieldError, match=r"data.train: .*a whole Parquet file \(.*fix: fetch it again") as caught:
        read(path)
    assert "\n" not in str(caught.value)
    with pytest.raises(FieldError, match=r"data.train: .*at least one conversation"):
        read(table(tmp_path / "empty.parquet"))


def test_without_pyarrow_it_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = table(tmp_path / "x.parquet", {"messages": json.dumps([])})
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(FieldError, match=r"data.train: .*Parquet only with pyarrow.*fix: pip install 'pyarrow"):
        read(path)
