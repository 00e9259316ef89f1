"""Reads: how likely is each of a few labels at some positions of a canvas? Nothing is generated."""

from __future__ import annotations

from dataclasses import dataclass

from nemo_diffgemma.errors import require, require_integer
from trtllm_build.runtime.request import MAX_SEED, check_caller

# Token ids that mean the same answer, with and without a space before it, for example.
Label = tuple[int, ...]
# More than this would hold up running canvases for as many denoising steps.
MOST_SAMPLES = 16


@dataclass(frozen=True)
class ReadCanvas:
    """What is read at once.

    Args:
        token_ids: what follows the request's shared prompt, maybe nothing.
        canvas_ids: the canvas: a token where it is fixed, None where something is to be read.
        labels: of each None, in order, two labels at least; no token is in two labels of the same position.
    """

    token_ids: tuple[int, ...]
    canvas_ids: tuple[int | None, ...]
    labels: tuple[tuple[Label, ...], ...]

    @property
    def rows(self) -> tuple[int, ...]:
        """Positions that are read."""
        return tuple(i for i, token in enumerate(self.canvas_ids) if token is None)


@dataclass(frozen=True)
class ReadRequest:
    """Canvases that are read after the same prompt, which is encoded once. None of them sees another.

    Args:
        prompt_ids: what all of them begin with, at least one token.
        canvases: what is read.
        seed: of the noise at the positions that are read: a draw of seed, sample and position.
        samples: reads of each canvas with different noise, which are averaged.
        priority, client, cache_salt, deadline: as in :class:`trtllm_build.runtime.request.Request`.

    Raises:
        FieldError: on a value out of range. Limits of the engine are checked when it is submitted.
    """

    prompt_ids: tuple[int, ...]
    canvases: tuple[ReadCanvas, ...]
    seed: int = 0
    samples: int = 1
    priority: int = 0
    client: str = ""
    cache_salt: str = ""
    deadline: float | None = None

    def __post_init__(self) -> None:
        for name, found in (("prompt", self.prompt_ids), ("canvases", self.canvases)):
            require(len(found) > 0, field=name, value="none", allowed="at least one", fix="send one that is not empty")
        require_integer("seed", self.seed, 0, MAX_SEED)
        require_integer("samples", self.samples, 1, MOST_SAMPLES)
        check_caller(self.priority, self.client, self.cache_salt, self.deadline)
        for i, canvas in enumerate(self.canvases):
            _check(f"canvases[{i}]", canvas)

    @property
    def longest(self) -> int:
        """Most tokens that follow the prompt at once, a canvas included."""
        return max(len(c.token_ids) + len(c.canvas_ids) for c in self.canvases)

    @property
    def room(self) -> int:
        """Most tokens its cache holds."""
        return len(self.prompt_ids) + self.longest


@dataclass(frozen=True)
class Slot:
    """What was read at one position; means over the samples.

    Args:
        probabilities: of each label among the labels; they sum to 1.
        label_mass: probability, among all tokens, that it is a label at all.
        argmax_is_label: in how many of the samples the likeliest token of all belonged to a label, 0 to 1.
        standard_errors: of each probability; None for a single sample.
    """

    probabilities: tuple[float, ...]
    label_mass: float
    argmax_is_label: float
    standard_errors: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Reading:
    """One canvas of a request.

    Args:
        index: which, from 0.
        slots: of each position that was read, in order.
    """

    index: int
    slots: tuple[Slot, ...]


def _check(name: str, canvas: ReadCanvas) -> None:
    rows = canvas.rows
    require(
        len(rows) > 0 and len(rows) == len(canvas.labels),
        field=f"{name}.labels",
        value=f"{len(canvas.labels)} for {len(rows)} positions",
        allowed="one set of labels for each None of canvas_ids, at least one",
        fix="write None at each position that is to be read",
    )
    for row, labels in zip(rows, canvas.labels, strict=True):
        ids = [token for label in labels for token in label]
        require(
            len(labels) >= 2 and all(labels) and len(set(ids)) == len(ids),
            field=f"{name}.labels of position {row}",
            value=labels if len(ids) < 20 else f"{len(labels)} labels",
            allowed="two labels at least, of at least one token each, none of which is in two of them",
            fix="leave out what cannot be told apart",
        )
