"""What a run learns from: the demo task's files where they are asked for, and all conversations as token ids."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from nemo_diffgemma import demo_task, new_tokenizer
from nemo_diffgemma.architecture import Architecture
from nemo_diffgemma.demo_task import write_demo_data
from nemo_diffgemma.errors import require
from nemo_diffgemma.files import file_sha256, listed_files, locked, short_hash, some, write_json
from nemo_diffgemma.tokenizer import Tokenizer
from nemo_diffgemma.training.data import Encoder, Loaded, load_examples
from nemo_diffgemma.training.settings import Data, TrainConfig

CALIBRATION_LINES = 64
_UNFINISHED = "unfinished"  # in the place of a hash


@dataclass(frozen=True)
class Corpus:
    """What a run learns from and what it is validated on; None for nothing."""

    train: Loaded
    validation: Loaded | None


def load_corpus(config: TrainConfig, say: Callable[[str], None] | None) -> Corpus:
    """Training and validation examples; every process of a run calls this, with the same result.

    The demo task's files are written by the first process that is here, and by none when they are as they should be.

    Args:
        config: of the run.
        say: takes a line for each of the two: how many conversations, of which form; None in a process that says
            nothing because another one does.

    Raises:
        FieldError: when a file is not what it should be; see :mod:`nemo_diffgemma.training.data`.
    """
    data, arch = config.data, config.arch
    assert data.tokenizer is not None
    if data.generate is not None:
        _generate(data, arch)
    tokens = Tokenizer(data.tokenizer)
    check_tokenizer(tokens, arch)

    def load(files: tuple[Path, ...], key: str, keep: int | None) -> Loaded:
        encoder = Encoder(tokens, arch.canvas_length, arch.eos_token_ids[0], data.max_tokens, data.too_long)
        loaded = load_examples(files, encoder, key, data.form, keep, shown=say is not None)
        if say is not None and data.generate is None:
            say(loaded.summary)
        return loaded

    train = load(data.train, "data.train", CALIBRATION_LINES)
    validation = load(data.validation, "data.validation", None) if data.validation else None
    both = {path.resolve() for path in data.train} & {path.resolve() for path in data.validation}
    if both and say is not None:
        names = some([str(path) for path in data.validation if path.resolve() in both])
        say(f"data.validation: {names} is trained on too: its loss says nothing of other conversations")
    largest = max(max(e.prompt + e.response) for e in [*train.examples, *(validation.examples if validation else ())])
    allowed = f"token ids below model.vocab_size {arch.vocab_size}"
    require(
        largest < arch.vocab_size,
        field="data.tokenizer",
        value=f"token id {largest}",
        allowed=allowed,
        fix="pass the model's tokenizer",
    )
    return Corpus(train, validation)


def check_tokenizer(tokens: Tokenizer, arch: Architecture) -> None:
    """Raise :class:`FieldError` unless the token that ends a turn also ends the model's answers."""
    end, known = tokens.answer_end[-1], list(arch.eos_token_ids)
    found = f"{tokens.decode([end], skip_special_tokens=False)!r} (token {end}) ends a turn of its chat template"
    allowed = f"one of the model's eos_token_ids {known}: where none is, answers do not end"
    require(
        end in known,
        field="data.tokenizer",
        value=found,
        allowed=allowed,
        fix=f"pass the model's tokenizer, or add {end} to eos_token_ids",
    )


def _generate(data: Data, arch: Architecture) -> None:
    """Write the demo task's files, unless they are there; nothing else is replaced."""
    assert data.generate is not None
    assert data.tokenizer is not None
    (train,), (held_out,) = data.train, data.validation
    require(
        train.resolve() != held_out.resolve(),
        field="data.validation",
        value=str(held_out),
        allowed="another file than data.train",
        fix="leave it out",
    )
    note = train.with_name(f".{train.name}.json")  # what was written, and of what
    files = [*sorted(Path(str(demo_task.__file__)).parent.glob("*.py")), Path(str(new_tokenizer.__file__))]
    sources = "".join(path.read_text(encoding="utf-8") for path in files)
    made_of = {**vars(data.generate), "vocab_size": arch.vocab_size, "sources": short_hash(sources)}
    with locked(train.with_name(f".{train.name}.lock"), busy=lambda: None, unsupported=lambda: None):
        written = listed_files(note.parent, note.name) or {}
        places = {"data.train": train, "data.validation": held_out, "data.tokenizer": data.tokenizer}
        for key, path in places.items():
            ours = key in written and written[key] in (_UNFINISHED, _hash(path))
            allowed = "nothing, or what the demo task wrote there"
            fix = "pass data.generate=null to train on your own files (data=chat), or another run=DIR"
            require(ours or _hash(path) is None, field=key, value=str(path), allowed=allowed, fix=fix)
        whole = all(_hash(path) is not None for path in places.values())
        if whole and json.loads(note.read_text(encoding="utf-8"))["made_of"] == made_of:
            return
        # first, so that a run which is killed over them knows them for its own
        write_json(note, {"made_of": None, "files": dict.fromkeys(places, _UNFINISHED)})
        write_demo_data(train, held_out, data.tokenizer, arch.vocab_size, **vars(data.generate))
        write_json(note, {"made_of": made_of, "files": {key: _hash(path) for key, path in places.items()}})


def _hash(path: Path) -> str | None:
    """Of a file, or of all that lies in a folder; None where nothing is, or an empty folder."""
    if not path.is_dir():
        return file_sha256(path) if os.path.lexists(path) else None
    files = sorted(p for p in path.rglob("*") if not p.is_dir())
    return short_hash("".join(f"{p.relative_to(path)} {file_sha256(p)}\n" for p in files)) if files else None
