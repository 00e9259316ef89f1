"""Records of a Parquet file: the columns of the form that it has, and no other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from nemo_diffgemma.conversations.faults import Faults
from nemo_diffgemma.conversations.forms import TELLING, USED, recognise
from nemo_diffgemma.conversations.record import Record, Tick
from nemo_diffgemma.errors import FieldError, require

if TYPE_CHECKING:
    from pyarrow import Array
    from pyarrow.parquet import ParquetFile

_ROWS = 256  # at a time
# What pyarrow raises for a value that is none of Python's: text that is no UTF-8, dates beyond its calendar, maps with
# a key twice, an unknown time zone.
_NO_VALUE = (ValueError, OverflowError, KeyError, NotImplementedError)


class _Unreadable(NamedTuple):
    """A cell that is no value."""

    error: Exception


def parquet_records(
    path: Path, field: str, form: str | None, faults: Faults, tick: Tick
) -> Iterator[tuple[str, Record]]:
    """Each row as a record with its place (``FILE: row N``), which errors name.

    Args:
        path: of the file.
        field: how the user named it.
        form: of its records; None recognises it by the first row.
        faults: takes the errors of single cells.
        tick: told how far the file has been read.

    Raises:
        FieldError: when it is not a whole Parquet file, or pyarrow is not there.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        allowed = f"Parquet only with pyarrow ({error})"
        raise FieldError(
            field=field, value=str(path), allowed=allowed, fix="pip install 'pyarrow>=24,<26', or write JSON lines"
        ) from None
    number = 0
    try:
        size = path.stat().st_size
        # one thread: damaged pages are then told in the same words every time
        with pyarrow.parquet.ParquetFile(path, page_checksum_verification=True) as file:
            rows, names = file.metadata.num_rows, file.schema_arrow.names
            if rows:
                columns = _columns(file, names, path, form)
            for batch in file.iter_batches(_ROWS, columns=columns, use_threads=False) if rows else ():
                batch.validate()
                cells = [_values(batch.column(name)) for name in columns]
                for row in range(len(batch)):
                    number += 1
                    where, record = f"{path}: row {number}", dict[str, Any]()
                    for name, values in zip(columns, cells, strict=True):
                        record[name] = value = values[row]
                        if isinstance(value, _Unreadable):
                            faults.add(where, _bad_cell(f"{where}: {name}", value.error))
                            break
                    else:
                        yield where, record
                tick(size * number // rows)
    except (pyarrow.ArrowException, OSError, MemoryError, UnicodeDecodeError) as error:
        if isinstance(error, OSError) and error.errno:
            raise
        said = " ".join(str(error).split())[:200] or type(error).__name__
        allowed = f"a whole Parquet file ({said})"
        fix = "write it without encryption" if "crypt" in said else "fetch it again"
        raise FieldError(field=field, value=str(path), allowed=allowed, fix=fix) from None
    require(number > 0, field=field, value=str(path), allowed="at least one conversation", fix="write one row for each")


def _columns(file: ParquetFile, names: Sequence[str], path: Path, form: str | None) -> list[str]:
    """The columns that the form uses, of those that the file has."""
    form = form or recognise(_first_row(file, names), f"{path}: row 1")
    columns = [name for name in names if name in USED[form]]
    twice = [name for name, count in Counter(columns).items() if count > 1]
    require(
        not twice,
        field=str(path),
        value=twice,
        allowed="one column of each name",
        fix="drop or rename the others and write the file again",
    )
    # without any column there would be no rows, and nothing to say what is missing
    return columns


def _first_row(file: ParquetFile, names: Sequence[str]) -> Record:
    """What tells the form; a value that cannot be read is still one."""
    telling = sorted(TELLING.intersection(names))
    if not telling:
        return dict.fromkeys(names, "a column")
    batch = next(file.iter_batches(1, columns=telling, use_threads=False))
    # of several columns of one name any tells; whether the form uses them is looked at later
    return {name: _values(batch.column(batch.schema.names.index(name)))[0] for name in telling}


def _values(column: Array[Any]) -> list[Any]:
    try:
        return list(column.to_pylist(maps_as_pydicts="strict"))
    except _NO_VALUE:
        return [_value(column, row) for row in range(len(column))]


def _value(column: Array[Any], row: int) -> Any:
    try:
        return column[row].as_py(maps_as_pydicts="strict")
    except _NO_VALUE as error:
        return _Unreadable(error)


def _bad_cell(field: str, error: Exception) -> FieldError:
    if isinstance(error, UnicodeDecodeError):
        allowed, fix = f"UTF-8 ({error.reason} at byte {error.start})", "write the text again as UTF-8"
        return FieldError(field=field, value=error.object, allowed=allowed, fix=fix)
    said = " ".join(str(error).split())
    allowed = "texts, numbers, true, false, null, lists and structs of them"
    return FieldError(field=field, value=said, allowed=allowed, fix="write a text in its place")
