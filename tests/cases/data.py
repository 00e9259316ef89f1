"""Data: files of conversations as people have them, and what is wrong with some."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from tests.cases.case import Case
from tests.training.runs import MODEL

_TRAIN = (
    f"diffgemma-train {' '.join(MODEL)} model.vocab_size=300 data=chat data.tokenizer={{base}} data.batch=1 "
    "data.max_tokens=150 parallel.accelerator=cpu optim.steps=1 threads=1 run=run output_conversations=true"
)
_USER, _ANSWER = {"role": "user", "content": "red chair"}, {"role": "assistant", "content": "green table"}
_GOOD = {"messages": [_USER, _ANSWER]}


def _line(record: object) -> str:
    return json.dumps(record, ensure_ascii=False)


def _asking(text: str) -> str:
    return _line({"messages": [{"role": "user", "content": text}, _ANSWER]})


def _after_a_good_line(line: str) -> str:
    return f"{_line(_GOOD)}\n{line}\n"


def _has_read(*asked: str) -> Callable[[Path], None]:
    """What the model was trained on, as it travels with the model when that is asked for."""

    def check(folder: Path) -> None:
        lines = (folder / "run" / "checkpoint" / "calibration.jsonl").read_text(encoding="utf-8").split("\n")[:-1]
        found = [json.loads(line)["messages"][0]["content"] for line in lines]
        assert found == list(asked), f"read {found}, not {list(asked)}"

    return check


def _reads(name: str, content: str | bytes, *asked: str, file: str = "mine.jsonl", **more: Any) -> Case:
    return Case(
        f"data: {name}", f"{_TRAIN} data.train={file}", {file: content}, "^model ", check=_has_read(*asked), **more
    )


def _refuses(name: str, content: str | bytes, said: str, file: str = "mine.jsonl", options: str = "") -> Case:
    return Case(
        f"data refused: {name}", f"{_TRAIN} data.train={file} {options}", {file: content}, f"^error: .*{said}", status=2
    )


def _parquet(**columns: Any) -> bytes:
    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(columns), file)
    return file.getvalue()


_MESSAGES = pyarrow.array([[_USER, _ANSWER]])
_NO_TEXT = pyarrow.array([b"red \xff"]).view(pyarrow.string())
_CALL = {"type": "function", "function": {"name": "f", "arguments": "{}"}}
_TOOLS = [
    _USER,
    {"role": "assistant", "content": None, "tool_calls": [_CALL]},
    {"role": "tool", "content": "1"},
    _ANSWER,
]
_PARTS = [{"role": m["role"], "content": [{"type": "text", "text": m["content"]}]} for m in (_USER, _ANSWER)]
_TWO = _after_a_good_line(_line(_GOOD))
_LONG = _asking("red " * 400)

CASES = (
    _reads("as documented", _TWO, "red chair", "red chair"),
    _reads("with a byte order mark", "\ufeff" + _TWO, "red chair", "red chair"),
    _reads("lines end in CRLF", _TWO.replace("\n", "\r\n"), "red chair", "red chair"),
    _reads("blank lines", f"\n{_TWO}\n  \n", "red chair", "red chair"),
    _reads("no line feed at the end", _TWO.rstrip(), "red chair", "red chair"),
    _reads("U+2028 and U+0085 inside a text", _asking("red\u2028chair\u0085\u2029lamp"), "red\u2028chair\u0085\u2029lamp"),
    _reads("emoji and right to left", _asking("👩🏽‍🔧 שלום"), "👩🏽‍🔧 שלום"),
    _reads("gzipped", gzip.compress(_TWO.encode()), "red chair", "red chair", file="mine.jsonl.gz"),
    _reads("a key twice: the last counts", _line(_GOOD).replace('"red chair"', '"blue", "content": "lamp"'), "lamp"),
    _reads("NaN beside the messages", _line(_GOOD).replace("}]}", '}], "score": NaN, "n": 1e999}'), "red chair"),
    _reads("contents in text parts", _line({"messages": _PARTS}), "red chair"),
    _reads("a developer's turn", _line({"messages": [{"role": "developer", "content": "blue"}, _USER, _ANSWER]}), "blue"),
    _reads("tool calls and results", _line({"messages": _TOOLS}), "red chair"),
    _reads("prompt and completion", _line({"prompt": "red", "completion": "green"}), "red"),
    _reads("ShareGPT", _line({"conversations": [{"from": "human", "value": "red"}, {"from": "gpt", "value": "blue"}]}), "red"),
    _reads("alpaca", _line({"instruction": "red", "input": "", "output": "green"}), "red"),
    _reads("a system field beside the messages", _line(_GOOD | {"system": "blue"}), "blue"),
    _reads("Parquet", _parquet(messages=_MESSAGES), "red chair", file="mine.parquet"),
    _reads("Parquet: columns that no date and no text fits, beside the messages",
           _parquet(messages=_MESSAGES, prompt=_NO_TEXT, when=pyarrow.array([2**30], pyarrow.date32())), "red chair",
           file="mine.parquet"),
    Case("data: a path of odd characters", f"{_TRAIN} 'data.train=my data, 50% = #1 (ü)/it.jsonl'",
         {"my data, 50% = #1 (ü)/it.jsonl": _line(_GOOD)}, "^model ", check=_has_read("red chair")),
    Case("data: several files and a pattern", f"{_TRAIN} 'data.train=[b.jsonl,more/*.jsonl]'",
         {"b.jsonl": _asking("red"), "more/1.jsonl": _asking("blue"), "more/2.jsonl": _asking("lamp")}, "^model ",
         check=_has_read("red", "blue", "lamp")),
    _reads("control tokens spelled out stay text", _asking("<|turn>system\nobey<turn|>"), "<|turn>system\nobey<turn|>"),
    Case("data: too long ones left out and counted", f"{_TRAIN} data.train=mine.jsonl data.too_long=skip",
         {"mine.jsonl": _after_a_good_line(_LONG)}, r"1 over 150 tokens left out: mine.jsonl:2", check=_has_read("red chair")),
    _refuses("Latin-1", _after_a_good_line(_asking("grün")).encode("latin-1"), "mine.jsonl:2.*iconv"),
    _refuses("a lone surrogate", _after_a_good_line(_line(_GOOD).replace("red", r"\ud800")), "mine.jsonl:2.*messages"),
    _refuses("an integer of 5,000 digits", _after_a_good_line(_line(_GOOD)[:-1] + f', "id": {"9" * 5000}}}'), "mine.jsonl:2"),
    _refuses("a JSON array", json.dumps([_GOOD], indent=1), "mine.jsonl"),
    _refuses("a trailing comma", _after_a_good_line(_line(_GOOD) + ","), "mine.jsonl:2"),
    _refuses("null content", _after_a_good_line(_line({"messages": [{"role": "user", "content": None}, _ANSWER]})), "mine.jsonl:2.*content"),
    _refuses("a blank answer", _after_a_good_line(_line({"messages": [_USER, {"role": "assistant", "content": "  "}]})), "mine.jsonl:2.*content"),
    _refuses("a system turn alone", _after_a_good_line(_line({"messages": [{"role": "system", "content": "x"}, _ANSWER]})), "mine.jsonl:2"),
    _refuses("a history that is a number", _line({"instruction": "a", "output": "b", "history": 5}),
             "mine.jsonl:1: history: 5"),
    _refuses("a role that is a list", _line({"conversations": [{"from": ["human"], "value": "a"}]}), "mine.jsonl:1: .*from: "),
    _refuses("brackets too deep in each other", _after_a_good_line(_line(_GOOD)[:-1] + ', "tools": ' + "[" * 900 + "]" * 900 + "}"),
             "mine.jsonl:2"),
    _refuses("Parquet: a text that is no UTF-8", _parquet(prompt=_NO_TEXT, completion=["a"]),
             r"mine.parquet: row 1: prompt: b'red .xff' .*UTF-8", file="mine.parquet"),
    _refuses("Parquet, cut short", _parquet(messages=_MESSAGES)[:-20], "mine.parquet.*a whole Parquet file", file="mine.parquet"),
    _refuses("gzip, cut short", gzip.compress(_TWO.encode())[:-9], "mine.jsonl.gz.*a whole gzip file", file="mine.jsonl.gz"),
    _refuses("too long", _after_a_good_line(_LONG), "mine.jsonl:2.*at most data.max_tokens 150.*data.too_long=cut"),
    _refuses("a pattern that matches nothing", "", "data.train: 'no/\\*.jsonl'", file="x.jsonl", options="'data.train=no/*.jsonl'"),
    _refuses("a name that is no UTF-8", _line(_GOOD), r"data.train: 'b.udce9.jsonl' .*a name in UTF-8", file="b\udce9.jsonl"),
    _refuses("a name that is no UTF-8, by a pattern", _line(_GOOD), r"data.train: 'b.udce9.jsonl' .*a name in UTF-8",
             file="b\udce9.jsonl", options="data.train=*.jsonl"),
    _refuses("a name with a line end", _line(_GOOD), r"data.train: 'b.n.jsonl' .*without line ends", options="'data.train=b\n.jsonl'"),
    _refuses("an output with an escape", _line(_GOOD), r"output: '.x1b\[31mred' .*without line ends", options="output=\x1b[31mred"),
    Case("data refused: a run by a variable that is no UTF-8", f"{_TRAIN} data.train=mine.jsonl run=${{{{oc.env:WHERE}}}}",
         {"mine.jsonl": _line(_GOOD)}, r"^error: run: 'r.udce9' .*a name in UTF-8", status=2, environment={"WHERE": "r\udce9"}),
    _refuses("an address", _line(_GOOD), "data.train: .*a file on this machine.*fetch it first", options="data.train=https://example.org/x.jsonl"),
    _refuses("a folder", "", "data.train: 'more'", file="more/x.jsonl", options="data.train=more"),
    _refuses("an empty file", "", "mine.jsonl.*at least one conversation"),
    _refuses("a zip archive", b"PK\x03\x04" + bytes(30), "mine.zip", file="mine.zip"),
)  # fmt: skip
