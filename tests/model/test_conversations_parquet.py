"""Conversations in Parquet."""

from __future__ import annotations

import json
import sys
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

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


MESSAGES = pyarrow.array([[ASKED, SAID]])
BROKEN_TEXT = pyarrow.array([b"ab\xff"]).view(pyarrow.string())
UNREADABLE = {
    "a text that is no UTF-8": BROKEN_TEXT,
    "a day after year 9999": pyarrow.array([2**30], pyarrow.date32()),
    "a moment after year 9999": pyarrow.array([2**62], pyarrow.timestamp("us")),
    "a time zone of another planet": pyarrow.array([1], pyarrow.timestamp("us", tz="Mars/Base")),
    "fields of one name": pyarrow.StructArray.from_arrays([pyarrow.array([1])] * 2, ["a", "a"]),
}


def columns(path: Path, **arrays: Any) -> Path:
    pyarrow.parquet.write_table(pyarrow.table(arrays), path)
    return path


@pytest.mark.parametrize("column", UNREADABLE.values(), ids=UNREADABLE)
def test_columns_that_the_form_does_not_use_are_not_read(column: Any, tmp_path: Path) -> None:
    (found,) = read(columns(tmp_path / "x.parquet", messages=MESSAGES, prompt=column, other=column))
    assert found.answer == "b"


@pytest.mark.parametrize("column", UNREADABLE.values(), ids=UNREADABLE)
def test_a_cell_that_is_no_value_is_named(column: Any, tmp_path: Path) -> None:
    path = columns(tmp_path / "x.parquet", prompt=column, completion=["b"])
    with pytest.raises(FieldError, match=r"x.parquet: row 1: prompt: .*allowed: .*fix: write .*text") as caught:
        read(path)
    assert str(caught.value).isprintable()


def test_a_bad_cell_does_not_hide_the_rows_beside_it(tmp_path: Path) -> None:
    prompts = pyarrow.array([b"a", b"\xe9", b"b", b"\xe8"]).view(pyarrow.string())
    path = columns(tmp_path / "x.parquet", prompt=prompts, completion=["1", "2", "3", " "])
    reader = Reader([path], "data.train")
    assert [talk.answer for talk in reader] == ["1", "3"]
    said = r"row 2: prompt: b'\\xe9' .*UTF-8 \(.*so it is with 1 more: .*row 4"
    with pytest.raises(FieldError, match=said):
        reader.faults.check()


@pytest.mark.parametrize("value", [datetime(2020, 1, 1), b"x", Decimal("1.5")], ids=str)
@pytest.mark.parametrize("place", ["tools", "arguments"])
def test_what_json_does_not_have_is_refused_in_tools(value: Any, place: str, tmp_path: Path) -> None:
    function = {"name": "f", "parameters": {"x": value if place == "tools" else 1}}
    call = {"function": {"name": "f", "arguments": {"x": value if place == "arguments" else 1}}}
    asked = [ASKED, SAID | {"tool_calls": [call]}, {"role": "tool", "content": "1"}, SAID]
    path = table(tmp_path / "x.parquet", {"messages": asked, "tools": [{"type": "function", "function": function}]})
    with pytest.raises(FieldError, match=rf"row 1: \S*{place}\S*: .*what JSON has.*a text in its place"):
        read(path)


@pytest.mark.parametrize(
    "arrays",
    [
        {
            "prompt": pyarrow.array(["a"]).dictionary_encode(),
            "completion": pyarrow.array(["b"], pyarrow.large_string()),
        },
        {"prompt": pyarrow.array(["a"], pyarrow.string_view()), "completion": ["b"]},
        {
            "messages": pyarrow.array(
                [[list(ASKED.items()), list(SAID.items())]],
                pyarrow.large_list(pyarrow.map_(pyarrow.string(), pyarrow.string())),
            )
        },
    ],
    ids=["dictionary and large", "views", "maps"],
)
def test_other_kinds_of_columns_are_the_same(arrays: Any, tmp_path: Path) -> None:
    (found,) = read(columns(tmp_path / "x.parquet", **arrays))
    assert (found.asked, found.answer) == ((ASKED,), "b")


def test_bytes_are_no_text(tmp_path: Path) -> None:
    path = columns(tmp_path / "x.parquet", prompt=[b"abc"], completion=["b"])
    with pytest.raises(FieldError, match=r"row 1: prompt: b'abc' .*allowed: text"):
        read(path)


def test_two_columns_of_a_name_are_refused_where_they_are_used(tmp_path: Path) -> None:
    path, texts = tmp_path / "x.parquet", pyarrow.array(["a"])
    pyarrow.parquet.write_table(pyarrow.Table.from_arrays([MESSAGES, texts, texts], ["messages", "x", "x"]), path)
    assert len(read(path)) == 1
    pyarrow.parquet.write_table(pyarrow.Table.from_arrays([MESSAGES, MESSAGES], ["messages"] * 2), path)
    with pytest.raises(FieldError, match=r"x.parquet: \['messages'\] .*one column of each name"):
        read(path)


def test_columns_of_no_form_are_told_which_there_are(tmp_path: Path) -> None:
    with pytest.raises(FieldError, match=r"row 1: \['text'\] .*fields of one form"):
        read(columns(tmp_path / "x.parquet", text=["a"]))
    with pytest.raises(FieldError, match=r"row 1: \[\] .*fields of one form"):
        read(columns(tmp_path / "x.parquet", messages=pyarrow.array([None], MESSAGES.type)))
    with pytest.raises(FieldError, match=r"at least one conversation"):
        read(columns(tmp_path / "none.parquet"))


def test_a_damaged_page_is_a_damaged_file(tmp_path: Path) -> None:
    path = columns(tmp_path / "x.parquet", prompt=[f"red {i}" for i in range(3000)], completion=["b"] * 3000)
    content = bytearray(path.read_bytes())
    content[2000:2040] = bytes(40)
    path.write_bytes(content)
    with pytest.raises(FieldError, match=r"x.parquet'.*a whole Parquet file \(.*fix: fetch it again"):
        read(path)
