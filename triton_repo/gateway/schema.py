"""The requests of OpenAI's API, as far as a diffusion model can honour them; everything else is refused by name."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, field_validator, model_validator
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError

from triton_repo.tensors import ALL_INPUTS

# Marks, in the path of a validation error, which of several shapes a value was taken for.
SHAPE = "~"
MOST_CHOICES = 64
_MOST_INT32 = 2**31 - 1
_MOST_SEED = 2**64 - 1
_PENALTY = "a canvas is denoised in parallel, without penalties: leave it out"
_TOOLS = "tools are not supported: leave it out"
_OURS = "this server has nothing of the kind: leave it out"

Int32 = Annotated[int, Field(ge=-_MOST_INT32 - 1, le=_MOST_INT32)]
Float32 = Annotated[float, Field(ge=-3.4e38, le=3.4e38, allow_inf_nan=False)]
Token = Annotated[int, Field(ge=0, le=_MOST_INT32)]


def _input(name: str, **limits: Any) -> Any:
    """A field that is passed on as the served model's input of this name."""
    return Field(default=None, description=ALL_INPUTS[name].about, **limits)


def _only(*neutral: Any, instead: str) -> Any:
    """A field that is accepted as long as it asks for nothing: None or one of ``neutral``."""
    return Field(default=None, description=f"Unsupported: {instead}", json_schema_extra={"enum": [None, *neutral]})


class Strict(BaseModel):
    """No conversions, no unknown fields; a field made by :func:`_only` takes its neutral values."""

    model_config = ConfigDict(strict=True, extra="forbid", protected_namespaces=())

    @field_validator("*", mode="before")
    @classmethod
    def _asks_for_nothing(cls, value: Any, info: Any) -> Any:
        field: FieldInfo = cls.model_fields[info.field_name]
        extra = field.json_schema_extra
        if not isinstance(extra, dict) or not (field.description or "").startswith("Unsupported"):
            return value
        neutral: Any = extra["enum"]
        # True equals 1 in Python, and not in JSON.
        if any(value == n and isinstance(value, bool) == isinstance(n, bool) for n in neutral):
            return value
        instead = (field.description or "").removeprefix("Unsupported: ")
        raise PydanticCustomError("unsupported", "not supported here: {instead}", {"instead": instead})


class StreamOptions(Strict):
    """``stream_options``."""

    include_usage: bool | None = Field(default=None, description="a last chunk with the usage of the whole request")
    include_obfuscation: Any = _only(False, instead=_OURS)


class _Common(Strict):
    """What both endpoints take."""

    renamed: ClassVar[dict[str, str]] = {"user": "client", "stop": "stop_words"}

    model: str = Field(description="as /v1/models names it")
    max_tokens: Int32 | None = _input("max_tokens", ge=1)
    seed: int | None = _input("seed", ge=0, le=_MOST_SEED)
    n: int | None = Field(default=None, ge=1, le=MOST_CHOICES, description="answers, with seed, seed + 1, ...")
    stop: Annotated[
        Annotated[str, Tag("~text")]
        | Annotated[list[str], Field(max_length=4), Tag("~list")]
        | Annotated[None, Tag("~null")],
        Discriminator(lambda value: _shape(value)),
    ] = Field(default=None, description="up to four texts before the first of which the answer is cut")
    stream: bool | None = Field(default=None, description="server-sent events, a chunk for every committed block")
    stream_options: StreamOptions | None = None
    user: str | None = Field(default=None, description=ALL_INPUTS["client"].about)

    temperature: Float32 | None = _input("temperature", ge=0, le=2)
    top_p: Float32 | None = _input("top_p", ge=0, le=1)
    min_tokens: Int32 | None = _input("min_tokens", ge=0)
    stop_token_ids: list[Int32] | None = _input("stop_token_ids")
    ignore_eos: bool | None = _input("ignore_eos")
    canvas_length: Int32 | None = _input("canvas_length", ge=0)
    priority: Int32 | None = _input("priority")
    deadline: Float32 | None = _input("deadline")
    draft_every: Int32 | None = _input("draft_every", ge=0)
    max_denoising_steps: Int32 | None = _input("max_denoising_steps")
    t_min: Float32 | None = _input("t_min")
    t_max: Float32 | None = _input("t_max")
    entropy_bound: Float32 | None = _input("entropy_bound")
    confidence_threshold: Float32 | None = _input("confidence_threshold")
    stability_threshold: Int32 | None = _input("stability_threshold")

    presence_penalty: Any = _only(0, instead=_PENALTY)
    frequency_penalty: Any = _only(0, instead=_PENALTY)
    logit_bias: Any = _only({}, instead="leave it out, or send the tokens that are allowed from Python")

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise PydanticCustomError("stream_options", "stream_options: only with stream=true")
        if self.draft_every and not self.stream:
            raise PydanticCustomError("draft_every", "draft_every: only with stream=true")
        if (self.seed or 0) + self.choices - 1 > _MOST_SEED:
            raise PydanticCustomError("seed", "seed: seed + n - 1 has to fit into 64 bits")
        return self

    @property
    def choices(self) -> int:
        """Answers to each prompt."""
        return self.n or 1

    def inputs(self) -> dict[str, Any]:
        """The served model's inputs but for prompt, seed and stream; None where the request is silent."""
        names = [name for name in _Common.model_fields if self.renamed.get(name, name) in ALL_INPUTS]
        given = {self.renamed.get(name, name): getattr(self, name) for name in names if name not in _APART}
        if isinstance(given["stop_words"], str):
            given["stop_words"] = [given["stop_words"]]
        given["stop_words"] = given["stop_words"] or None
        return given


_APART = ("seed", "stream", "presence_penalty", "frequency_penalty")


class TextPart(Strict):
    """A part of a message's content."""

    type: Literal["text"]
    text: str


class Message(Strict):
    """One message of a conversation."""

    role: Literal["system", "developer", "user", "assistant"] = Field(description="developer is another name of system")
    content: Annotated[
        Annotated[str, Tag("~text")] | Annotated[list[TextPart], Field(min_length=1), Tag("~list")],
        Discriminator(lambda value: _shape(value)),
    ]
    # null in answers that come back as history
    name: Any = _only(instead="put it into content")
    refusal: Any = _only(instead=_OURS)
    annotations: Any = _only([], instead=_OURS)
    audio: Any = _only(instead="only text is supported")
    tool_calls: Any = _only([], instead=_TOOLS)
    function_call: Any = _only(instead=_TOOLS)

    def plain(self) -> dict[str, str]:
        """As the served model takes it."""
        content = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return {"role": "system" if self.role == "developer" else self.role, "content": content}


class ChatRequest(_Common):
    """Body of ``POST /v1/chat/completions``."""

    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: Int32 | None = Field(default=None, ge=1, description="another name of max_tokens")

    logprobs: Any = _only(False, instead="a token has no log-probability: it is the outcome of many denoising steps")
    top_logprobs: Any = _only(0, instead="a token has no log-probability: it is the outcome of many denoising steps")
    tools: Any = _only([], instead=_TOOLS)
    tool_choice: Any = _only("none", "auto", instead=_TOOLS)
    parallel_tool_calls: Any = _only(True, False, instead=_TOOLS)
    functions: Any = _only([], instead=_TOOLS)
    function_call: Any = _only("none", "auto", instead=_TOOLS)
    response_format: Any = _only({"type": "text"}, instead="only text is supported")
    modalities: Any = _only(["text"], instead="only text is supported")
    audio: Any = _only(instead="only text is supported")
    prediction: Any = _only(instead=_OURS)
    reasoning_effort: Any = _only("none", instead=_OURS)
    verbosity: Any = _only(instead=_OURS)
    web_search_options: Any = _only(instead=_OURS)
    service_tier: Any = _only("auto", "default", instead="set priority")
    store: Any = _only(False, instead="nothing is stored: leave it out")
    metadata: Any = _only({}, instead="nothing is stored: leave it out")

    @model_validator(mode="after")
    def _one_limit(self) -> Self:
        if None not in (self.max_tokens, self.max_completion_tokens) and self.max_tokens != self.max_completion_tokens:
            raise PydanticCustomError("max_completion_tokens", "max_completion_tokens: not the same as max_tokens")
        return self

    def prompts(self) -> list[dict[str, Any]]:
        """The client's arguments for each prompt."""
        limit = self.max_tokens if self.max_tokens is not None else self.max_completion_tokens
        return [{"messages": [message.plain() for message in self.messages], "max_tokens": limit}]


class CompletionRequest(_Common):
    """Body of ``POST /v1/completions``."""

    prompt: Annotated[
        Annotated[str, Tag("~text")]
        | Annotated[list[str], Field(min_length=1, max_length=MOST_CHOICES), Tag("~texts")]
        | Annotated[list[Token], Field(min_length=1), Tag("~tokens")]
        | Annotated[
            list[Annotated[list[Token], Field(min_length=1)]],
            Field(min_length=1, max_length=MOST_CHOICES),
            Tag("~lists of tokens"),
        ],
        Discriminator(lambda value: _prompt_shape(value)),
    ] = Field(description="text, token ids, or a list of either, answered as several choices")
    suffix: str | None = _input("suffix")

    best_of: Any = _only(1, instead="send n, and choose")
    echo: Any = _only(False, instead="prepend the prompt in the client")
    logprobs: Any = _only(instead="a token has no log-probability: it is the outcome of many denoising steps")

    @model_validator(mode="after")
    def _not_too_many(self) -> Self:
        if len(self.prompts()) * self.choices > MOST_CHOICES:
            raise PydanticCustomError("n", "n: prompts times n is at most {most}", {"most": MOST_CHOICES})
        if self.suffix is not None and self.draft_every:
            raise PydanticCustomError("draft_every", "draft_every: not with suffix, which is answered in one piece")
        return self

    def prompts(self) -> list[dict[str, Any]]:
        """The client's arguments for each prompt."""
        many = isinstance(self.prompt, list) and not isinstance(self.prompt[0], int)
        each: list[Any] = list(self.prompt) if many else [self.prompt]
        # An empty suffix asks for no infilling.
        more = {"suffix": self.suffix or None, "max_tokens": self.max_tokens}
        return [{"prompt" if isinstance(one, str) else "input_ids": one, **more} for one in each]


def _shape(value: Any) -> str:
    if value is None:
        return "~null"
    return "~list" if isinstance(value, list) else "~text"


def _prompt_shape(value: Any) -> str:
    if not isinstance(value, list):
        return "~text"
    first = value[0] if value else ""
    if isinstance(first, list):
        return "~lists of tokens"
    return "~texts" if isinstance(first, str) else "~tokens"
