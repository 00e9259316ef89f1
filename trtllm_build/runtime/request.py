"""What a caller asks of the engine, and what it gets back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from nemo_diffgemma.errors import require, require_integer
from trtllm_build.grammar.token_automaton import TokenAutomaton
from trtllm_build.sampling import SamplerConfig, Sampling

FinishReason = Literal["stop", "length", "cancelled", "deadline", "unavailable", "error"]
MAX_SEED = 2**64 - 1
FIT = "fit"
_FORM = "grammar (response_format, regex, choice or tools)"  # whichever name it came under


@dataclass(frozen=True)
class Request:
    """One generation. Positions count tokens of the answer from 0, across its canvases.

    Args:
        prompt_ids: token ids of the prompt, at least one.
        max_tokens: most tokens to return; need not be a multiple of the canvas.
        seed: all randomness follows from it; 0 to 2**64 - 1.
        sampler: how canvases are denoised.
        temperature, top_p: how tokens are drawn, see :class:`trtllm_build.sampling.Sampling`.
        ignore_eos: go on to ``max_tokens`` whatever the model writes; stop tokens and strings still end it.
        min_tokens: no end of sequence and no stop token before this position.
        stop: texts before the first of which the answer is cut.
        stop_token_ids: tokens before the first of which the answer is cut.
        draft_every: also report the argmax canvas after every so many denoising steps; 0 for never.
        priority: lower goes first.
        client: whose it is: of equal priority, clients take turns; any text.
        cache_salt: what is in the cache of an earlier request is reused only when that had the same; any text.
        deadline: seconds from submission after which it is ended; None for never.
        canvas_length: tokens per canvas; None for the model's own, ``"fit"`` for the narrowest that holds
            ``max_tokens``.
        seed_canvas: token ids that the answer's first positions start from, instead of noise.
        pinned: position -> the token that stands there, whatever the model thinks. No end of sequence is written before
            the last of them.
        allowed: token ids that the answer is made of; None for the whole vocabulary.
        allowed_at: position -> token ids allowed there, instead of ``allowed``.
        grammar: the form that the answer has, as :func:`trtllm_build.grammar.compile.compile_grammar` takes it or
            gives it; None for any. An answer that is not cancelled and not late has it, within ``max_tokens``.

    Raises:
        FieldError: on a value out of range. Limits of the engine are checked when it is submitted.
    """

    prompt_ids: tuple[int, ...]
    max_tokens: int
    seed: int = 0
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    temperature: float = 1.0
    top_p: float = 1.0
    ignore_eos: bool = False
    min_tokens: int = 0
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    draft_every: int = 0
    priority: int = 0
    client: str = ""
    cache_salt: str = ""
    deadline: float | None = None
    canvas_length: int | Literal["fit"] | None = None
    seed_canvas: tuple[int, ...] = ()
    pinned: Mapping[int, int] = field(default_factory=dict)
    allowed: tuple[int, ...] | None = None
    allowed_at: Mapping[int, tuple[int, ...]] = field(default_factory=dict)
    grammar: Mapping[str, Any] | TokenAutomaton | None = None

    def __post_init__(self) -> None:
        require(
            len(self.prompt_ids) > 0,
            field="prompt",
            value="no tokens",
            allowed="at least one token",
            fix="send a prompt that is not empty",
        )
        require_integer("max_tokens", self.max_tokens, 1)
        require_integer("seed", self.seed, 0, MAX_SEED)
        _ = self.sampling
        require_integer("min_tokens", self.min_tokens, 0, self.max_tokens)
        require_integer("draft_every", self.draft_every, 0)
        check_caller(self.priority, self.client, self.cache_salt, self.deadline)
        if self.canvas_length not in (None, FIT):
            good = isinstance(self.canvas_length, int) and not isinstance(self.canvas_length, bool)
            good = good and int(self.canvas_length or 0) >= 1
            require(
                good,
                field="canvas_length",
                value=self.canvas_length,
                allowed=f'an integer >= 1, "{FIT}" or None',
                fix="leave it out",
            )
        _sequence("stop", self.stop, str)
        for text in self.stop:
            require(text != "", field="stop", value=text, allowed="texts that are not empty", fix="leave it out")
        for name in ("stop_token_ids", "seed_canvas", "allowed"):
            if getattr(self, name) is not None:
                _sequence(name, getattr(self, name), int)
        for name in ("pinned", "allowed_at"):
            value = getattr(self, name)
            require(
                isinstance(value, Mapping),
                field=name,
                value=value,
                allowed="a mapping from positions",
                fix=f"pass {name}={{}}",
            )
        size = len(self.seed_canvas)
        require(
            size <= self.max_tokens,
            field="seed_canvas",
            value=f"{size} tokens",
            allowed=f"at most max_tokens ({self.max_tokens})",
            fix="shorten it, or raise max_tokens",
        )
        self._check_grammar()
        self._check_positions("pinned", self.pinned)
        self._check_positions("allowed_at", self.allowed_at)
        for name, ids in (("allowed", self.allowed), *((f"allowed_at[{p}]", i) for p, i in self.allowed_at.items())):
            require(
                ids is None or len(ids) > 0,
                field=name,
                value=ids,
                allowed="at least one token id",
                fix="leave it out to allow all",
            )

    @property
    def sampling(self) -> Sampling:
        """How tokens are drawn."""
        return Sampling(self.temperature, self.top_p)

    def _check_grammar(self) -> None:
        """What would cut an answer of a grammar, or forbid what it demands, does not go with one."""
        if self.grammar is None:
            return
        require(
            isinstance(self.grammar, Mapping | TokenAutomaton),
            field="grammar",
            value=self.grammar,
            allowed="an object, for example {'choice': ['yes', 'no']}",
            fix="pass one, or leave it out",
        )
        others = ("allowed", "allowed_at", "pinned", "min_tokens", "ignore_eos", "stop", "stop_token_ids")
        for name in others:
            value = getattr(self, name)
            require(
                value is None or not value,
                field=name,
                value=value,
                allowed=f"nothing beside {_FORM}, which alone says what may be written and where it ends",
                fix=f"leave out {name}, or that",
            )
        require(
            self.top_p in (0, 1),
            field="top_p",
            value=self.top_p,
            allowed=f"1, or 0, beside {_FORM}: its answers are drawn whole, not token by token",
            fix="leave it out, or lower temperature",
        )

    def _check_positions(self, name: str, positions: Mapping[int, object]) -> None:
        for position in positions:
            require_integer(f"{name}: position", position, 0, self.max_tokens - 1)

    def canvas(self, full: int) -> int:
        """Tokens per canvas of this request, in an engine whose canvas has ``full``."""
        if self.canvas_length is None:
            return full
        return min(full, self.max_tokens) if self.canvas_length == FIT else int(self.canvas_length)

    def room(self, full: int) -> int:
        """Most tokens its cache holds: the prompt, and canvases up to ``max_tokens``."""
        canvas = self.canvas(full)
        return len(self.prompt_ids) + -(-self.max_tokens // canvas) * canvas


def check_caller(priority: object, client: object, cache_salt: object, deadline: object) -> None:
    """Look at what a request says of its caller, whether it generates or reads; see :class:`Request`.

    Raises:
        FieldError: for the first that cannot be.
    """
    require_integer("priority", priority, -(2**31), 2**31 - 1)
    for name, text in (("client", client), ("cache_salt", cache_salt)):
        require(isinstance(text, str), field=name, value=text, allowed="a string", fix=f'pass {name}="name"')
    seconds = isinstance(deadline, int | float) and not isinstance(deadline, bool) and 0 < deadline < float("inf")
    good = deadline is None or seconds
    require(good, field="deadline", value=deadline, allowed="seconds > 0, or None", fix="pass deadline=60")


@dataclass(frozen=True)
class Draft:
    """The canvas as it stands after one denoising step. Provisional: the next step may change any of it.

    Args:
        canvas_index: which canvas of the request, from 0.
        step: denoising steps done on this canvas, from 1.
        token_ids: the argmax canvas, cut at an end of sequence and at ``max_tokens``.
        text: its text; empty for an engine without a tokenizer.
        entropy: mean entropy of the canvas in nats.
    """

    canvas_index: int
    step: int
    token_ids: tuple[int, ...]
    text: str
    entropy: float


@dataclass(frozen=True)
class CanvasTimes:
    """When one canvas was denoised, in seconds of :func:`time.monotonic`.

    Args:
        started: its first step began.
        ended: its last step was done, or the request ended while it was under way.
        committed: its tokens were in the cache; None when they did not go there: the last canvas of a request.
        denoising_steps: steps done.
        finished: it became a block; False when the request ended before.
        converged: as in :class:`Block`.
    """

    started: float
    ended: float
    committed: float | None
    denoising_steps: int
    finished: bool
    converged: bool


@dataclass(frozen=True)
class Timeline:
    """When a request got how far, in seconds of :func:`time.monotonic`.

    Args:
        submitted: it was queued.
        admitted: it got a slot; None when it never did.
        prefilled: the whole prompt was in the cache; None when it ended before.
        canvases: in order, one that was under way at the end included.
        ended: its last block was made.
    """

    submitted: float
    admitted: float | None
    prefilled: float | None
    canvases: tuple[CanvasTimes, ...]
    ended: float


@dataclass(frozen=True)
class RequestStats:
    """What a finished request took.

    Args:
        queue_seconds: from submission to admission; None when it never was.
        first_block_seconds: from submission to the first committed block; None when there was none.
        seconds: from submission to the end.
        prompt_tokens: tokens of the prompt.
        reused_tokens: of them, found in the cache of an earlier request.
        encoded_tokens: tokens encoded, committed canvases included.
        canvases: canvases denoised.
        denoising_steps: steps of all of them.
        accepted_per_step: mean number of positions accepted in a step.
        cache_bytes: bytes that its cache can come to fill.
        timeline: when what happened.
    """

    queue_seconds: float | None
    first_block_seconds: float | None
    seconds: float
    prompt_tokens: int
    reused_tokens: int
    encoded_tokens: int
    canvases: int
    denoising_steps: int
    accepted_per_step: float
    cache_bytes: int
    timeline: Timeline


@dataclass(frozen=True)
class Block:
    """A finished canvas: committed, it will not change.

    Args:
        canvas_index: which canvas of the request, from 0.
        token_ids: new tokens, without end-of-sequence token and padding.
        text: new text; concatenated over a request's blocks it is the text of all tokens.
        denoising_steps: steps this canvas took.
        entropies: mean entropy (nats) of the canvas after each step.
        finish_reason: set on the last block of a request, None before.
        error: what went wrong, for finish_reason ``error``; for ``unavailable`` what was full.
        stats: on the last block.
        converged: the canvas was stable and confident; False when ``max_denoising_steps`` ended it, and for a last
            block that is no canvas (``denoising_steps`` 0).
        log_z: with a grammar, nats: log-probability, at the canvas's last step, that what its positions choose by
            themselves is of that form.
        seconds: from the request's block before, or from its submission, to this block's commit.
    """

    canvas_index: int
    token_ids: tuple[int, ...]
    text: str
    denoising_steps: int
    entropies: tuple[float, ...] = ()
    finish_reason: FinishReason | None = None
    error: str | None = None
    stats: RequestStats | None = None
    converged: bool = False
    log_z: float | None = None
    seconds: float = field(default=0.0, compare=False)


Event = Draft | Block


def _sequence(name: str, value: object, kind: type) -> None:
    good = isinstance(value, tuple | list) and all(isinstance(v, kind) and not isinstance(v, bool) for v in value)
    require(good, field=name, value=value, allowed=f"a tuple of {kind.__name__}", fix=f"pass {name}=(...)")
