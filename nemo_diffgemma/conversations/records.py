"""Records of a file: JSON lines, plain or gzipped, or Parquet. What else it may be is refused with what to do."""

from __future__ import annotations

import gzip
import json
import os
import shlex
import zlib
from collections.abc import Iterator, Sequence
from functools import partial
from glob import glob, has_magic
from pathlib import Path
from typing import IO, Any

from nemo_diffgemma.conversations.faults import Faults
from nemo_diffgemma.conversations.parquet import parquet_records
from nemo_diffgemma.conversations.record import ONE_A_LINE, Record, Tick
from nemo_diffgemma.errors import FieldError, require
from nemo_diffgemma.names import check_name

_BOM = b"\xef\xbb\xbf"
_PARQUET = b"PAR1"
_GZIP = b"\x1f\x8b"
_TICK = 256  # records
_LONGEST = 2**26  # bytes of a line: far more than any context has, and little enough to hold
# What a file starts with, what it is then, and the command that helps; {} is the file.
_OTHERS = (
    (b"PK\x03\x04", "a zip archive", "unzip {} and pass what is in it"),
    (b"BZh", "compressed by bzip2", "bunzip2 --keep {} and pass the result"),
    (b"\x28\xb5\x2f\xfd", "compressed by zstd", "zstd --decompress {} and pass the result"),
    (b"\xfd7zXZ\x00", "compressed by xz", "unxz --keep {} and pass the result"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", "7z x {} and pass what is in it"),
    (b"\xff\xfe\0\0", "UTF-32 text", "iconv -f UTF-32 -t UTF-8 {} > NEW.jsonl"),
    (b"\0\0\xfe\xff", "UTF-32 text", "iconv -f UTF-32 -t UTF-8 {} > NEW.jsonl"),
    (b"\xff\xfe", "UTF-16 text", "iconv -f UTF-16 -t UTF-8 {} > NEW.jsonl"),
    (b"\xfe\xff", "UTF-16 text", "iconv -f UTF-16 -t UTF-8 {} > NEW.jsonl"),
    (b"ARROW1", "an Arrow file", "write it as Parquet: datasets.Dataset.from_file(FILE).to_parquet('NEW.parquet')"),
    (_GZIP, "gzipped twice", "gunzip"),
    (_PARQUET, "gzipped Parquet", "gunzip"),
    (b"PARE", "an encrypted Parquet file", "write it without encryption"),
    (b"version https://git-lfs", "a pointer of Git LFS, not the file", "git lfs pull"),
)
_TABLE = (
    'python3 -c "import pandas, sys; '
    "pandas.read_csv(sys.argv[1]).to_json('NEW.jsonl', orient='records', lines=True)\" {}"
)
_ARRAY = 'python3 -c "import json, sys; [print(json.dumps(r)) for r in json.load(open(sys.argv[1]))]" {} > NEW.jsonl'
_SPREAD = "jq --compact-output . {} > NEW.jsonl"


def find_files(field: str, patterns: Sequence[str]) -> tuple[Path, ...]:
    """The files that paths and glob patterns name: in the order given, those of a pattern by name.

    Args:
        field: how the user named them (``data.train``).
        patterns: a path that exists is that file, whatever characters it has.

    Raises:
        FieldError: for a path without a file, a pattern that nothing matches or that matches what cannot be read twice
            (a pipe, a link to nothing), and for names that :func:`~nemo_diffgemma.names.check_name` refuses.
    """
    found: list[Path] = []
    require(bool(patterns), field=field, value=list(patterns), allowed="one file or more", fix=f"pass {field}=FILE")
    for pattern in patterns:
        try:
            found += _named(field, pattern)
        except OSError as error:
            allowed, fix = f"a path that can be looked at ({error.strerror})", f"pass {field}=FILE"
            raise FieldError(field=field, value=pattern, allowed=allowed, fix=fix) from None
    return tuple(found)


def _named(field: str, pattern: str) -> list[Path]:
    check_name(field, pattern)
    path, fix = Path(pattern), f"pass {field}=FILE"
    if path.is_dir():
        inside = path / ("*.parquet" if any(path.glob("*.parquet")) else "*.jsonl")
        fix = f"pass {field}={shlex.quote(str(inside))}"
        raise FieldError(field=field, value=pattern, allowed="files, not a folder", fix=fix)
    if path.is_file():
        return [path]
    remote = "://" in pattern and not path.exists()
    fetch = f"fetch it first, then pass {field}=FILE"
    require(not remote, field=field, value=pattern, allowed="a file on this machine", fix=fetch)
    allowed = "a file that can be read twice" if path.exists() else "a JSONL file that exists"
    require(not path.exists() and has_magic(pattern), field=field, value=pattern, allowed=allowed, fix=fix)
    matches = [name for name in sorted(glob(pattern, recursive=True)) if not os.path.isdir(name)]
    require(bool(matches), field=field, value=pattern, allowed="a pattern that matches a file", fix=fix)
    for name in matches:
        check_name(field, name)
        fix = f"remove it, or pass a pattern that does not match it (of {pattern!r})"
        require(os.path.isfile(name), field=field, value=name, allowed="a file that can be read twice", fix=fix)
    return [Path(name) for name in matches]


def records(
    path: Path, field: str, faults: Faults, form: str | None = None, tick: Tick = lambda _done: None
) -> Iterator[tuple[str, Record]]:
    """Each record of a file with its place (``FILE:LINE``), which errors name.

    Lines end at a line feed and nowhere else; empty ones are skipped. A byte order mark, and carriage returns before
    line feeds, mean nothing. Of two equal keys the last counts.

    Args:
        path: JSON lines, which may be gzipped, or Parquet.
        field: how the user named the file.
        faults: takes the errors of single lines.
        form: of its records, so that of Parquet only its columns are read; None recognises it by the first row.
        tick: told how far the file has been read.

    Raises:
        FieldError: when the file is something else, is empty or cannot be read.
    """
    try:
        with path.open("rb") as raw:
            head = _head(raw)
            if head.startswith(_PARQUET):
                yield from parquet_records(path, field, form, faults, tick)
                return
            if head.startswith(_GZIP):
                with gzip.open(raw) as unzipped:
                    yield from _lines(unzipped, raw, path, field, faults, tick)
                return
            yield from _lines(raw, raw, path, field, faults, tick)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise FieldError(
            field=field, value=str(path), allowed=f"a whole gzip file ({error})", fix="fetch it again"
        ) from None
    except OSError as error:
        allowed, fix = (
            f"a file that can be read ({error.strerror})",
            "make it readable for this user; ls -l says whose it is",
        )
        raise FieldError(field=field, value=str(path), allowed=allowed, fix=fix) from None


def _head(file: IO[bytes]) -> bytes:
    start = file.read(4096)
    file.seek(0)
    return start


def _lines(
    file: Any, raw: IO[bytes], path: Path, field: str, faults: Faults, tick: Tick
) -> Iterator[tuple[str, Record]]:
    _refuse_others(_head(file), path, field)
    offset, empty = 0, True
    for number, line in enumerate(iter(partial(file.readline, _LONGEST + 1), b""), 1):
        long, allowed = len(line) > _LONGEST, f"lines of at most {_LONGEST:,} bytes"
        require(not long, field=f"{path}:{number}", value="a longer line", allowed=allowed, fix=f"write {ONE_A_LINE}")
        start, offset = offset, offset + len(line)
        if number % _TICK == 0:
            tick(raw.tell())
        where = f"{path}:{number}"
        text = line.removeprefix(_BOM).strip(b" \t\r\n")
        if not text:
            continue
        empty = False
        try:
            yield where, _record(where, text, start + line.index(text), path)
        except FieldError as error:
            faults.add(where, error)
    require(not empty, field=field, value=str(path), allowed="at least one conversation", fix=f"write {ONE_A_LINE}")


def _record(where: str, line: bytes, start: int, path: Path) -> Record:
    """One line, which starts at byte ``start`` of the file."""
    first, quoted = _as_text(path)
    try:
        value = json.loads(line.decode())
    except UnicodeDecodeError as error:
        found = f"byte 0x{line[error.start]:02x} at byte {start + error.start} of the file"
        # the bytes that Latin-1 has no characters for are punctuation of Windows'
        encoding = "WINDOWS-1252" if any(0x80 <= byte <= 0x9F for byte in line) else "ISO-8859-1"
        fix = f"{first}iconv -f {encoding} -t UTF-8 {quoted} > NEW.jsonl, if that is its encoding"
        raise FieldError(field=where, value=found, allowed=f"UTF-8 ({error.reason})", fix=fix) from None
    except json.JSONDecodeError as error:
        rest, fix = error.doc[error.pos :].lstrip(), f"write {ONE_A_LINE}"
        if error.msg == "Extra data" and rest == ",":
            fix = f"no comma after an object: {first}sed 's/,[[:space:]]*$//' {quoted} > NEW.jsonl"
        elif error.msg == "Extra data" and "\r" in error.doc:
            fix = f"lines end with a line feed: {first}tr '\\r' '\\n' < {quoted} > NEW.jsonl"
        found = f"{error.msg} at column {error.colno}"
        raise FieldError(field=where, value=found, allowed="a JSON object", fix=fix) from None
    except ValueError:
        allowed = "numbers of at most 4,300 digits"
        raise FieldError(
            field=where, value="a longer number", allowed=allowed, fix="write it as a text, or leave it out"
        ) from None
    except RecursionError:
        raise FieldError(
            field=where, value="brackets too deep in each other", allowed="a JSON object", fix="leave them out"
        ) from None
    require(isinstance(value, dict), field=where, value=value, allowed="a JSON object", fix=f"write {ONE_A_LINE}")
    return dict(value)


def _as_text(path: Path) -> tuple[str, str]:
    """For a shell: what has to come before a command that reads the file's text, and the name it then has."""
    quoted = shlex.quote(str(path))
    with path.open("rb") as file:
        zipped = file.read(len(_GZIP)) == _GZIP
    return (f"gunzip --stdout {quoted} > TEXT && ", "TEXT") if zipped else ("", quoted)


def _refuse_others(head: bytes, path: Path, field: str) -> None:
    """Raise :class:`FieldError` for what has no JSON lines, as far as its beginning tells."""
    unzip, quoted = _as_text(path)

    def refuse(what: str, command: str) -> None:
        command = command.format(quoted)
        if what.startswith("gzipped"):
            command = f"gunzip --stdout {shlex.quote(str(path))} > NEW, and pass that"
        elif quoted in command:
            command = unzip + command
        raise FieldError(
            field=field, value=f"{path} is {what}", allowed="JSON lines, which may be gzipped, or Parquet", fix=command
        )

    for start, what, command in _OTHERS:
        if head.startswith(start):
            refuse(what, command)
    if head[257:262] == b"ustar":
        refuse("a tar archive", "tar --extract --file {} and pass what is in it")
    if b"\0" in head:
        order = "BE" if head.startswith(b"\0") else "LE"
        refuse("binary", f"pass a text file; UTF-16 becomes UTF-8 by iconv -f UTF-16{order} -t UTF-8")
    first, _, rest = head.removeprefix(_BOM).lstrip().partition(b"\n")
    first = first.strip()
    if first.startswith(b"[") and not rest.lstrip().startswith(b"["):
        refuse("one JSON array", _ARRAY)
    if first == b"{":
        refuse("JSON objects of several lines each", _SPREAD)
    if path.suffix.lower() in (".csv", ".tsv") or (first[:1].isalpha() and b"," in first and b"{" not in first):
        refuse("a table of separated values", _TABLE)
