"""Whatever a file of conversations holds, it is read, or refused in one line that can be printed."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nemo_diffgemma.conversations.calls import MOST_DEPTH
from nemo_diffgemma.conversations.forms import FORMS, USED
from nemo_diffgemma.conversations.reader import Conversation, Reader
from nemo_diffgemma.errors import FieldError

_SETTINGS = settings(max_examples=150, deadline=None, derandomize=True, database=None)
_ROLES = ["system", "developer", "user", "assistant", "tool", "human", "gpt", "function_call", "observation"]
_scalar = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["", " ", "\ud800", "\x1b[31m", "\x85", '{"name": "f"}', '{"name": "f", "arguments": []}', "[1]"])
)
_any = st.recursive(
    _scalar, lambda x: st.lists(x, max_size=3) | st.dictionaries(st.text(max_size=3), x, max_size=3), max_leaves=8
)
_said = st.sampled_from(["red", "<|turn>system\n", "chair\u2028"])
_part = st.fixed_dictionaries({"type": st.just("text") | _any, "text": _said | _any})
_call = st.fixed_dictionaries(
    {"function": st.fixed_dictionaries({"name": st.just("f") | _any}, optional={"arguments": _any}) | _any},
    optional={"id": _any, "type": _any},
)
_message = st.fixed_dictionaries(
    {"role": st.sampled_from(_ROLES) | _any, "content": _said | st.lists(_part, max_size=2) | _any},
    optional={"tool_calls": st.lists(_call, max_size=2) | _any, "name": _any, "reasoning": _any, "tool_call_id": _any},
) | st.fixed_dictionaries({"from": st.sampled_from(_ROLES) | _any, "value": _said | _any})
_field = _said | st.lists(_message, max_size=3) | _any
_FIELDS = sorted(set.union(*map(set, USED.values())))
_record = st.fixed_dictionaries({}, optional=dict.fromkeys(_FIELDS, _field) | {"id": _any})
_good = st.sampled_from(
    [
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
        {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
        {"prompt": "a", "completion": "b"},
        {"instruction": "a", "output": "b"},
    ]
)


def read(path: Path, form: str | None = None) -> list[Conversation]:
    """Conversations; none when the file, or any line of it, is refused as it must be."""
    reader, said = Reader([path], "data.train", form), None
    try:
        found = list(reader)
        reader.faults.check()
    except FieldError as error:
        said = str(error)
    if said is not None:
        assert said.isprintable(), repr(said)
        assert path.name in said
        return []
    assert found
    for talk in found:
        for message in (*talk.asked, {"role": "assistant", "content": talk.answer}):
            assert isinstance(message["content"], str)
            message["content"].encode()
        json.loads(talk.as_line(), parse_constant=pytest.fail)
    return found


@_SETTINGS
@given(start=_good, more=_record, second=_record, form=st.none() | st.sampled_from(sorted(FORMS)))
def test_any_json(
    start: dict[str, Any], more: Any, second: Any, form: str | None, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("any") / "x.jsonl"
    path.write_text(f"{json.dumps(start | more)}\n{json.dumps(second)}\n", encoding="ascii")
    read(path, form)


@_SETTINGS
@given(record=_good, bad=_any, data=st.data())
def test_any_value_in_the_place_of_one(
    record: dict[str, Any], bad: Any, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Every field of every form takes its turn: what is read was either right or an absent option."""
    changed = json.loads(json.dumps(record))
    name = data.draw(st.sampled_from(sorted(changed)))
    place, key = changed, name
    if isinstance(changed[name], list):
        place = changed[name][data.draw(st.sampled_from([0, 1]))]
        key = data.draw(st.sampled_from(sorted(place)))
    place[key] = bad
    path = tmp_path_factory.mktemp("any") / "x.jsonl"
    path.write_text(f"{json.dumps(record)}\n{json.dumps(changed)}\n", encoding="ascii")
    found = read(path)
    is_text = isinstance(bad, str) or (isinstance(bad, list) and bad)
    assert not found or is_text, f"{bad!r} was read as {found[1]}"


@_SETTINGS
@given(data=st.data(), wide=st.booleans())
def test_bytes_of_a_parquet_file_changed(
    data: st.DataObject, wide: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """A changed byte may make another text of one; it never makes anything but conversations or one line."""
    path = tmp_path_factory.mktemp("any") / "x.parquet"
    rows = {"prompt": [f"red {i}" for i in range(40)], "completion": ["blue"] * 40}
    table = pyarrow.table(rows | ({"when": pyarrow.array([2**62] * 40, pyarrow.timestamp("us"))} if wide else {}))
    pyarrow.parquet.write_table(table, path, compression="none", row_group_size=16, write_page_checksum=True)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(4, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)
    read(path)


@_SETTINGS
@given(data=st.data())
def test_bytes_of_a_gzipped_file_changed(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("any") / "x.jsonl.gz"
    lines = "".join(json.dumps({"prompt": f"red {i}", "completion": "blue"}) + "\n" for i in range(40))
    content = bytearray(gzip.compress(lines.encode(), mtime=0))
    kind = data.draw(st.sampled_from(["flip", "cut", "more"]))
    if kind == "flip":
        content[data.draw(st.integers(10, len(content) - 9))] ^= data.draw(st.integers(1, 255))
    elif kind == "cut":
        del content[data.draw(st.integers(1, len(content) - 1)) :]
    else:
        content += data.draw(st.binary(min_size=1, max_size=9).filter(lambda more: more.strip(b"\0") != b""))
    path.write_bytes(content)
    assert read(path) == []


@pytest.mark.parametrize("depth", [10, MOST_DEPTH - 10, MOST_DEPTH, 300, 500, 900, 940, 980, 1500, 100_000])
@pytest.mark.parametrize("where", ["tools", "arguments", "text of arguments", "content", "id", "record"])
def test_brackets_in_each_other_are_read_or_refused(depth: int, where: str, tmp_path: Path) -> None:
    deep = '{"<|turn>":' * depth + "1" + "}" * depth
    call = {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "ARGUMENTS"}}]}
    asked, said = {"role": "user", "content": "CONTENT"}, {"role": "assistant", "content": "b"}
    tool = {"type": "function", "function": {"name": "f", "parameters": "TOOLS"}}
    record = {"messages": [asked, call, {"role": "tool", "content": "1"}, said], "tools": [tool], "id": "ID"}
    words = {"tools": "TOOLS", "arguments": "ARGUMENTS", "content": "CONTENT", "id": "ID"}
    line = json.dumps(record).replace('"ARGUMENTS"', "{}") if where != "arguments" else json.dumps(record)
    if where in words:
        line = line.replace(f'"{words[where]}"', deep)
    elif where == "text of arguments":
        line = json.dumps(record).replace('"ARGUMENTS"', json.dumps(deep))
    else:
        line = f"{line}\n{deep}"
    path = tmp_path / "x.jsonl"
    path.write_text(line, encoding="ascii")
    found = read(path)
    kept = where not in ("content", "record")
    assert bool(found) == (kept and depth < MOST_DEPTH) or (where == "id" and depth < 980)
