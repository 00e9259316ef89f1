"""Files of conversations: what is read, in which form, and what is said of what cannot be."""

from __future__ import annotations

import gzip
import json
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nemo_diffgemma.conversations.reader import Conversation, Reader
from nemo_diffgemma.conversations.records import find_files
from nemo_diffgemma.errors import FieldError
from nemo_diffgemma.questions import Question, read_questions

ASKED, SAID = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}
GOOD = {"messages": [ASKED, SAID]}
SYSTEM = {"role": "system", "content": "s"}


def zipped(content: bytes) -> bytes:
    """Gzipped, the same at any time: all workers of a run must name a test alike."""
    return gzip.compress(content, mtime=0)


def line(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode()


def write(path: Path, *lines: object) -> Path:
    """A file of lines: bytes as they are, other values as JSON."""
    path.write_bytes(b"".join((x if isinstance(x, bytes) else line(x)) + b"\n" for x in lines))
    return path


def read(*paths: Path, form: str | None = None) -> list[Conversation]:
    reader = Reader(paths, "data.train", form)
    found = list(reader)
    reader.faults.check()
    return found


def summary(*paths: Path) -> str:
    reader = Reader(paths, "data.train")
    assert list(reader)
    return reader.summary()


def texts(found: list[Conversation]) -> list[tuple[str, ...]]:
    return [(*(str(m["content"]) for m in talk.asked), talk.answer) for talk in found]


def talk(*texts: str) -> dict[str, Any]:
    return {"messages": [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]}


# -- lines -----------------------------------------------------------------------------------------------------------


def test_marks_ends_of_lines_and_empty_lines_mean_nothing(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    mark, (a, b, c) = b"\xef\xbb\xbf", (line(talk(text, "1")) for text in "abc")
    path.write_bytes(mark + a + b"\r\n\r\n  \n" + b + b"\n\n" + mark + c)
    found = read(path)
    assert texts(found) == [("a", "1"), ("b", "1"), ("c", "1")]
    assert [talk.where for talk in found] == [f"{path}:{n}" for n in (1, 4, 6)]


@settings(max_examples=100, deadline=None)
@given(said=st.lists(st.text(min_size=1).filter(lambda t: t.strip() != ""), min_size=2, max_size=2))
def test_any_text_comes_through_as_it_is(said: list[str], tmp_path_factory: pytest.TempPathFactory) -> None:
    """Line separators of Unicode are text: lines end at a line feed alone."""
    folder = tmp_path_factory.mktemp("any")
    both = [text + "\u2028\u2029\x85\x0b\x0c\x1c" for text in said]
    path = write(folder / "x.jsonl", talk(*both), talk("a", "b"))
    assert texts(read(path)) == [tuple(both), ("a", "b")]
    again = folder / "again.jsonl"
    again.write_text("".join(talk.as_line() + "\n" for talk in read(path)), encoding="ascii")
    assert texts(read(again)) == texts(read(path))


def test_gzip_is_read_whatever_it_is_called(tmp_path: Path) -> None:
    path, more = tmp_path / "x.jsonl", write(tmp_path / "y.jsonl", talk("c", "3"))
    path.write_bytes(zipped(line(talk("a", "1")) + b"\n") + zipped(line(talk("b", "2"))))
    found = read(path, more)
    assert texts(found) == [("a", "1"), ("b", "2"), ("c", "3")]
    assert found[1].where == f"{path}:2"
    assert summary(path, more) == "3 conversations of 2 files, messages form"


def test_of_equal_keys_the_last_counts_and_other_fields_are_left_out(tmp_path: Path) -> None:
    twice = b'{"messages": [{"role": "user", "content": "first", "content": "second"}, ' + line(SAID) + b"]}"
    others = b'{"id": 1e999, "weight": NaN, "messages": [{"role": "user", "content": "a", "weight": 0}, '
    others += b'{"role": "assistant", "content": "b", "annotations": [1]}], "prompt": 3}'
    first, second = read(write(tmp_path / "x.jsonl", twice, others))
    assert first.asked[0]["content"] == "second"
    assert second.asked == (ASKED,)


# -- forms -----------------------------------------------------------------------------------------------------------

CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
FORMS = [
    ("messages", GOOD, [ASKED]),
    ("messages", {"messages": [{"role": "developer", "content": "s"}, ASKED, SAID]}, [SYSTEM, ASKED]),
    ("messages", {"conversations": [ASKED, SAID]}, [ASKED]),
    (
        "messages",
        {
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "!"}]},
                {"role": "assistant", "content": [{"type": "text", "text": "b"}]},
            ]
        },
        [{"role": "user", "content": "a!"}],
    ),
    (
        "messages",
        {
            "messages": [
                ASKED,
                {"role": "assistant", "content": None, "tool_calls": [CALL]},
                {"role": "tool", "content": "", "tool_call_id": "1", "name": "f"},
                SAID,
            ]
        },
        [
            ASKED,
            {
                "role": "assistant",
                "content": "",
                "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": {"x": 1}}}],
            },
            {"role": "tool", "content": "", "tool_call_id": "1", "name": "f"},
        ],
    ),
    ("prompt_completion", {"prompt": "a", "completion": "b"}, [ASKED]),
    ("prompt_completion", {"prompt": [SYSTEM, ASKED], "completion": [SAID]}, [SYSTEM, ASKED]),
    ("sharegpt", {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}, [ASKED]),
    (
        "sharegpt",
        {
            "system": "s",
            "conversations": [
                {"from": "user", "value": "a"},
                {"from": "function_call", "value": '{"name": "f", "arguments": {}}'},
                {"from": "observation", "value": "1"},
                {"from": "gpt", "value": "b"},
            ],
        },
        [
            SYSTEM,
            ASKED,
            {
                "role": "assistant",
                "content": "",
                "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {}}}],
            },
            {"role": "tool", "content": "1"},
        ],
    ),
    ("messages", {"messages": [ASKED, SAID | {"tool_calls": None}], "system": "s", "tools": ""}, [SYSTEM, ASKED]),
    ("messages", {"messages": [SYSTEM, ASKED, SAID | {"tool_calls": []}], "system": "s"}, [SYSTEM, ASKED]),
    ("prompt_completion", {"prompt": "a", "completion": "b", "system": "s"}, [SYSTEM, ASKED]),
    ("alpaca", {"instruction": "a", "input": "", "output": "b", "history": [], "system": ""}, [ASKED]),
    ("alpaca", {"instruction": "a", "input": "", "output": "b"}, [ASKED]),
    ("alpaca", {"instruction": "a", "input": "x", "output": "b"}, [{"role": "user", "content": "a\n\nx"}]),
    (
        "alpaca",
        {"system": "s", "history": [["a", "b"]], "instruction": "a", "output": "b"},
        [SYSTEM, ASKED, SAID, ASKED],
    ),
]


@pytest.mark.parametrize(("form", "record", "asked"), FORMS)
def test_each_form_is_recognised_and_becomes_messages(
    form: str, record: dict[str, Any], asked: list[Any], tmp_path: Path
) -> None:
    path = write(tmp_path / "x.jsonl", record)
    (found,) = read(path)
    assert (list(found.asked), found.answer) == (asked, "b")
    assert summary(path) == f"1 conversation, {form} form"
    assert read(path, form=form) == [found]
    (again,) = read(write(tmp_path / "again.jsonl", found.as_line().encode()))
    assert (again.asked, again.answer) == (found.asked, found.answer)
    assert read_questions(path) == [Question(found.asked, "b")]


def test_files_of_several_forms_are_counted_by_form(tmp_path: Path) -> None:
    one = write(tmp_path / "1.jsonl", GOOD, GOOD)
    two = write(tmp_path / "2.jsonl", {"prompt": "a", "completion": "b"})
    assert summary(one, two) == "3 conversations of 2 files, messages form (2), prompt_completion form (1)"


def test_a_file_that_is_given_twice_is_said(tmp_path: Path) -> None:
    one, two = write(tmp_path / "1.jsonl", GOOD), write(tmp_path / "2.jsonl", GOOD)
    (tmp_path / "3.jsonl").symlink_to(one)
    assert summary(one, two, one) == f"3 conversations of 3 files ({one} more than once), messages form"
    assert f"({one}, {tmp_path / '3.jsonl'} more than once)" in summary(one, tmp_path / "3.jsonl")


def test_a_file_that_goes_while_others_are_read_is_one_line(tmp_path: Path) -> None:
    one, two = write(tmp_path / "1.jsonl", GOOD), write(tmp_path / "2.jsonl", GOOD)
    reader = iter(Reader([one, two], "data.train"))
    next(reader)
    one.unlink()
    two.unlink()
    with pytest.raises(FieldError, match=r"^data.train: '\S*2.jsonl' .*a file that can be read \(No such file"):
        next(reader)


def test_declarations_of_tools_travel_along(tmp_path: Path) -> None:
    tool = {"type": "function", "function": {"name": "f"}}
    listed, spelled = read(write(tmp_path / "x.jsonl", GOOD | {"tools": [tool]}, GOOD | {"tools": json.dumps([tool])}))
    assert listed.tools == spelled.tools == (tool,)
    (again,) = read(write(tmp_path / "again.jsonl", listed.as_line().encode()))
    assert again.tools == (tool,)


# -- what is refused -------------------------------------------------------------------------------------------------

USER = {"role": "user", "content": "a"}


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (
            b'{"messages": [',
            r"x.jsonl:2: 'Expecting value at column 15'.*a JSON object.*fix: write one JSON object",
        ),
        (line(GOOD) + b",", r"x.jsonl:2: 'Extra data at column \d+'.*fix: no comma after an object: sed "),
        (line(GOOD) + b"\r" + line(GOOD), r"x.jsonl:2: 'Extra data.*fix: lines end with a line feed: tr"),
        (
            b'{"messages": "caf\xe9"}',
            r"x.jsonl:2: 'byte 0xe9 at byte \d+ of.*UTF-8.*iconv -f ISO-8859-1 -t",
        ),
        (
            b'{"messages": "\x93caf\xe9\x94"}',
            r"x.jsonl:2: 'byte 0x93 .*iconv -f WINDOWS-1252 -t .*x.jsonl > NEW",
        ),
        (b'{"id": ' + b"9" * 5000 + b"}", r"x.jsonl:2: 'a longer number'.*at most 4,300 digits.*as a text, or leave"),
        (b'{"id": ' + b"[" * 100_000, r"x.jsonl:2: 'brackets too deep in each other'"),
        ([1], r"x.jsonl:2: \[1\] cannot be used; allowed: a JSON object"),
        ({"message": []}, r"x.jsonl:2: messages: None.*a list of messages"),
        ({"messages": []}, r"x.jsonl:2: messages: \[\].*a list of messages"),
        ({"messages": ["x", "y"]}, r"x.jsonl:2: messages\[0\]: 'x'.*an object with role and content"),
        (
            {"messages": [{"role": "human", "content": "x"}, SAID]},
            r"messages\[0\].role: 'human'.*system, developer",
        ),
        ({"messages": [USER, {"role": "assistant"}]}, r"2: messages\[1\].content: None.*text"),
        ({"messages": [{"role": "user", "content": None}, SAID]}, r"2: messages\[0\].content: None.*text"),
        ({"messages": [USER, {"role": "assistant", "content": " \n"}]}, r"2: messages\[1\].content: ' \\n' .*text"),
        ({"messages": [USER]}, r"2: role of the last message: 'user'.*assistant.*end with the answer"),
        ({"messages": [SYSTEM, SAID]}, r"2: role: \['system', 'assistant'\].*a user's message before the answer"),
        ({"messages": [SAID]}, r"2: role: \['assistant'\].*a user's message before the answer"),
        ({"messages": [USER, SAID | {"tool_calls": [CALL]}]}, r"2: tool_calls of the last message:.*a text is learnt"),
        (
            {"messages": [USER | {"tool_calls": [CALL]}, SAID]},
            r"messages\[0\].tool_calls: .*a message of the assistant",
        ),
        (
            {"messages": [USER, SAID | {"tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}, SAID]},
            r"messages\[1\].tool_calls\[0\].function.arguments: '\{'.*JSON",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}, SAID]},
            r'messages\[0\].content\[0\]: .*image_url.*allowed: \{"type": "text"',
        ),
        (
            b'{"messages": [{"role": "user", "content": "\\ud83d"}, {}]}',
            r"\[0\].content: '\\ud83d'.*half a surr",
        ),
        ({"messages": [USER | {"role": ["user"]}, SAID]}, r"2: messages\[0\].role: \['user'\].*system, developer"),
        (
            {"messages": [USER, SAID | {"tool_calls": [CALL | {"id": 7}]}, SAID]},
            r"2: messages\[1\].tool_calls\[0\].id: 7 .*allowed: text; fix: write it in quotes: \"7\"",
        ),
        (
            {"messages": [USER, {"role": "assistant", "content": None, "function_call": CALL["function"]}, SAID]},
            r"2: messages\[1\].function_call: .*allowed: tool_calls in its place; fix: write",
        ),
        (
            {"messages": [USER, SAID | {"function_call": CALL["function"]}, SAID]},
            r"2: messages\[1\].function_call: .*allowed: tool_calls in its place; fix: write",
        ),
        ({"messages": [USER, SAID], "functions": [{"name": "f"}]}, r"2: functions: .*allowed: tools in its place"),
        ({"messages": [USER, SAID | {"weight": 0}]}, r"2: weight of the last message: 0 .*1: it is learnt; fix: drop"),
        ({"messages": [USER, SAID | {"tool_calls": {}}, SAID]}, r"2: messages\[1\].tool_calls: \{\}.*a list, in"),
        ({"messages": [USER, SAID | {"tool_calls": 0}, SAID]}, r"2: messages\[1\].tool_calls: 0.*a list, in"),
        (GOOD | {"tools": False}, r"2: tools: False.*a list"),
        (GOOD | {"tools": {}}, r"2: tools: \{\}.*a list"),
        (GOOD | {"system": 0}, r"2: system: 0.*text"),
        ({"messages": [SYSTEM, USER, SAID], "system": "t"}, r"2: system: 't'.*none beside another.*leave one"),
        (
            GOOD | {"tools": [{"function": {"name": "f", "x": float("nan")}}]},
            r"2: tools\[0\]: .*nan.*what JSON has.*a text in its place",
        ),
        (GOOD | {"tools": [{"name": "f"}]}, r"2: tools\[0\]: .*function"),
    ],
)
def test_a_broken_line_names_file_line_and_field(bad: object, said: str, tmp_path: Path) -> None:
    path = write(tmp_path / "x.jsonl", GOOD, bad, GOOD)
    with pytest.raises(FieldError, match=said) as caught:
        read(path)
    assert "\n" not in str(caught.value)
    with pytest.raises(FieldError, match=said):
        read_questions(path)
    assert len(read_questions(path, limit=1)) == 1


@pytest.mark.parametrize(
    ("form", "bad", "said"),
    [
        (
            "prompt_completion",
            {"prompt": "a", "completion": [SAID | {"weight": 0}]},
            r"weight of the last message: 0 .*1: it is learnt",
        ),
        (
            "sharegpt",
            {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b", "weight": 0}]},
            r"weight of the last message: 0 .*1: it is learnt",
        ),
        (
            "sharegpt",
            {"conversations": [{"from": "narrator", "value": "a"}]},
            r"\[0\].from: 'narrator'.*human",
        ),
        ("sharegpt", {"conversations": [{"from": "human"}]}, r"conversations\[0\].value: None.*text"),
        ("sharegpt", {"conversations": [{"from": "human", "value": "a"}]}, r"from of the last message: 'user'"),
        ("prompt_completion", {"prompt": "a"}, r"2: completion: None.*text"),
        ("alpaca", {"instruction": "a", "output": ""}, r"2: output: ''.*text"),
        (
            "alpaca",
            {"instruction": "a", "output": "b", "history": ["x"]},
            r"2: history\[0\]: 'x'.*a question and",
        ),
        ("alpaca", {"instruction": "a", "output": "b", "history": 5}, r"2: history: 5.*a list, each a question and"),
        ("alpaca", {"instruction": "a", "output": "b", "history": {"a": 1}}, r"2: history: \{'a': 1\}.*a list, each"),
        ("alpaca", {"instruction": "a", "output": "b", "input": 0}, r"2: input: 0.*text"),
        ("sharegpt", {"conversations": [{"from": ["human"], "value": "a"}]}, r"\[0\].from: \['human'\].*human, user"),
        ("sharegpt", {"conversations": [{"from": {"a": 1}, "value": "a"}]}, r"\[0\].from: \{'a': 1\}.*human, user"),
        ("messages", {"conversations": 3}, r"2: conversations: 3.*a list of messages"),
    ],
)
def test_fields_are_named_as_their_form_names_them(form: str, bad: object, said: str, tmp_path: Path) -> None:
    good = next(record for name, record, _ in FORMS if name == form)
    with pytest.raises(FieldError, match=said):
        read(write(tmp_path / "x.jsonl", good, bad))


def test_a_record_of_no_form_is_told_which_there_are(tmp_path: Path) -> None:
    path = write(tmp_path / "x.jsonl", {"text": "a"}, {"question": "a", "answer": "b"})
    with pytest.raises(FieldError, match=r"x.jsonl:1: \['text'\].*conversations; prompt_completion: prompt and"):
        read(path)


def test_of_many_broken_lines_the_first_is_told_and_the_others_are_counted(tmp_path: Path) -> None:
    path = write(tmp_path / "x.jsonl", GOOD, *[{"messages": 1}] * 9, GOOD)
    said = rf"x.jsonl:2: messages: 1 .*so it is with 8 more: {path}:3, {path}:4, {path}:5, {path}:6 and 4 more\)$"
    with pytest.raises(FieldError, match=said):
        read(path)


def as_zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.jsonl", line(GOOD))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", r"data.train: '.*x.jsonl' cannot be used; allowed: at least one conversation"),
        (b"\n\n \r\n", r"data.train: '.*x.jsonl' cannot be used; allowed: at least one conversation"),
        (b"[\n  " + line(GOOD) + b"\n]", r"x.jsonl is one JSON array'.*JSON lines.*fix: python3 -c"),
        (b"[" + line(GOOD) + b"]", r"x.jsonl is one JSON array'"),
        (b'{\n  "messages": []\n}', r"is JSON objects of several lines each'.*fix: jq --compact-output \. "),
        (b"prompt,completion\na,b\n", r"is a table of separated values'.*fix: python3 -c .*read_csv"),
        (b"BZh91AY", r"is compressed by bzip2'.*fix: bunzip2 --keep "),
        (b"\x28\xb5\x2f\xfd", r"is compressed by zstd'.*fix: zstd --decompress "),
        (b"\xfd7zXZ\x00", r"is compressed by xz'.*fix: unxz --keep "),
        (zipped(zipped(line(GOOD))), r"is gzipped twice'.*fix: gunzip --stdout "),
        (zipped(b"PAR1"), r"is gzipped Parquet'.*fix: gunzip --stdout "),
        (zipped(line(GOOD)) + b"more", r"allowed: a whole gzip file \(.*fix: fetch it again"),
        (b"PARE1234", r"is an encrypted Parquet file'.*without encryption"),
        (json.dumps(GOOD).encode("utf-32"), r"is UTF-32 text'.*iconv -f UTF-32 -t"),
        (json.dumps(GOOD).encode("utf-16-be"), r"is binary'.*iconv -f UTF-16BE"),
        (zipped(b" " * 2**26 + b" "), r"x.jsonl:1: 'a longer line'.*lines of at most 67,108,864 bytes"),
        (zipped(b"BZh91AY"), r"is compressed by bzip2'"),
        (json.dumps(GOOD).encode("utf-16"), r"is UTF-16 text'.*fix: iconv -f UTF-16 -t UTF-8 "),
        (json.dumps(GOOD).encode("utf-16-le"), r"is binary'.*iconv -f UTF-16LE"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", r"a pointer of Git LFS.*fix: git lfs pull"),
        (zipped(line(GOOD))[:-9], r"allowed: a whole gzip file \(.*fix: fetch it again"),
        (as_zip, r"x.jsonl is a zip archive'.*fix: unzip "),
    ],
)
def test_another_kind_of_file_is_refused_with_what_to_do(content: Any, said: str, tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    content(path) if callable(content) else path.write_bytes(content)
    with pytest.raises(FieldError, match=said) as caught:
        read(path)
    assert "\n" not in str(caught.value)


def test_what_makes_json_lines_of_an_array_does(tmp_path: Path) -> None:
    path = tmp_path / "it's {0}.json"
    path.write_text(json.dumps([GOOD, GOOD], indent=1), encoding="utf-8")
    with pytest.raises(FieldError) as caught:
        read(path)
    subprocess.run(caught.value.fix, shell=True, check=True, cwd=tmp_path)
    assert texts(read(tmp_path / "NEW.jsonl")) == [("a", "b")] * 2


def test_what_makes_utf8_of_another_encoding_does(tmp_path: Path) -> None:
    path = tmp_path / "it's.jsonl"
    path.write_bytes(json.dumps(talk("café", "thé"), ensure_ascii=False).encode("latin-1"))
    with pytest.raises(FieldError) as caught:
        read(path)
    subprocess.run(caught.value.fix.partition(", if")[0], shell=True, check=True, cwd=tmp_path)
    assert texts(read(tmp_path / "NEW.jsonl")) == [("café", "thé")]


# -- which files -----------------------------------------------------------------------------------------------------


def test_paths_and_patterns_name_files_in_a_fixed_order(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.jsonl", "c.txt", "[1].jsonl"):
        write(tmp_path / name, GOOD)
    (tmp_path / "d.jsonl").mkdir()

    def names(*patterns: str) -> list[str]:
        return [path.name for path in find_files("data.train", [str(tmp_path / pattern) for pattern in patterns])]

    assert names("*.jsonl") == ["[1].jsonl", "a.jsonl", "b.jsonl"]
    assert names("c.txt", "[ab].jsonl") == ["c.txt", "a.jsonl", "b.jsonl"]
    assert names("[1].jsonl") == ["[1].jsonl"]


@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        ("none.jsonl", r"^data.train: '.*none.jsonl'.*a JSONL file that exists.*pass data.train=FILE"),
        ("*.nothing", r"^data.train: '.*nothing'.*a pattern that matches a file"),
        ("", r"^data.train: .*files, not a folder.*fix: pass data.train=\S*/\*.jsonl"),
    ],
)
def test_what_names_no_file_is_refused(pattern: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(FieldError, match=said):
        find_files("data.train", [f"{tmp_path}/{pattern}"])


def test_no_file_at_all_is_refused() -> None:
    with pytest.raises(FieldError, match=r"^data.train: \[\].*one file or more"):
        find_files("data.train", [])


def test_a_file_that_nobody_may_read_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x"
    path.mkdir()  # opening it fails for root too
    with pytest.raises(FieldError, match=r"data.train: '.*x'.*a file that can be read \(Is a directory\)"):
        read(path)


def test_progress_is_told_in_bytes(tmp_path: Path) -> None:
    files = [write(tmp_path / f"{n}.jsonl", *[GOOD] * 600) for n in (1, 2)]
    told: list[int] = []
    assert len(list(Reader(files, "data.train", tick=told.append))) == 1200
    assert told == sorted(told)
    assert told[-1] == sum(path.stat().st_size for path in files)
    assert len(told) > 4
