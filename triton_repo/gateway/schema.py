"""The requests of OpenAI's API, as far as a diffusion model can honour them; everything else is refused by name."""

from __future__ import annotations

import hashlib
import secrets
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Discriminator, Field, Tag, model_validator

from triton_repo.gateway.fields import (
    MOST_MESSAGES,
    Float32,
    Int32,
    Pairs,
    Parts,
    Strict,
    Text,
    Tokens,
    Whole,
    ignored,
    only,
    passed_on,
    wrong,
)
from triton_repo.gateway.form import Grammar, ResponseFormat, grammars, with_instruction
from triton_repo.gateway.messages import OURS, TOOLS, Message, require_one_name, text_or_list
from triton_repo.gateway.tools import MOST_TOOLS, UNASKED, ChatChoice, ChatNamed, ChatTool, tools_grammar, unasked
from triton_repo.tensors import ALL_INPUTS

MOST_CHOICES = 64
_MOST_SEED = 2**64 - 1
_DRAWN = -1
_MOST_STOPS = ALL_INPUTS["stop_words"].most_items
_PENALTY = "a canvas is denoised in parallel, without penalties: leave it out"
_ENTROPY = "tokens are accepted by entropy, set entropy_bound"
LOGPROBS = "a token has no log-probability: it is the outcome of many denoising steps"
_STORED = "nothing is stored"
_CACHE = "prompts are cached by what they begin with"
THINKING = "this model answers without thinking first"
# Of a client's name; the server only compares them.
_MOST_NAME = ALL_INPUTS["client"].most_bytes


class StreamOptions(Strict):
    """``stream_options``."""

    include_usage: bool | None = Field(default=None, description="a last chunk with the usage of the whole request")
    include_obfuscation: Any = ignored(False, why="nothing is added to hide the length of a chunk")


class Common(Strict):
    """What all endpoints take."""

    renamed: ClassVar[dict[str, str]] = {"user": "client", "stop": "stop_words"}

    model: Text = Field(min_length=1, description="as /v1/models names it")
    max_tokens: Int32 | None = passed_on("max_tokens", ge=1)
    seed: Annotated[int, Whole, Field(ge=_DRAWN, le=_MOST_SEED)] | None = Field(
        default=None, description=f"{ALL_INPUTS['seed'].about}; {_DRAWN}: one is drawn, and said in x-diffgemma-seed"
    )
    n: int | None = Field(default=None, ge=1, le=MOST_CHOICES, description="answers, with seed, seed + 1, ...")
    stop: Annotated[
        Annotated[Text, Tag("~text")]
        | Annotated[list[Text], Field(fail_fast=True, max_length=_MOST_STOPS), Tag("~list")]
        | Annotated[None, Tag("~null")],
        Discriminator(text_or_list),
    ] = Field(default=None, description="texts before the first of which the answer is cut; empty ones: none")
    stream: bool | None = Field(default=None, description="server-sent events, a chunk for every committed block")
    stream_options: StreamOptions | None = None
    user: Text | None = Field(default=None, description=ALL_INPUTS["client"].about)
    cache_salt: Text | None = passed_on("cache_salt", max_length=128)

    temperature: Float32 | None = passed_on("temperature", ge=0, le=2)
    top_p: Float32 | None = passed_on("top_p", ge=0, le=1)
    min_tokens: Int32 | None = passed_on("min_tokens", ge=0)
    stop_token_ids: Tokens | None = passed_on("stop_token_ids")
    ignore_eos: bool | None = passed_on("ignore_eos")
    canvas_length: Int32 | None = passed_on("canvas_length", ge=0)
    priority: Int32 | None = passed_on("priority")
    deadline: Float32 | None = passed_on("deadline")
    draft_every: Int32 | None = passed_on("draft_every", ge=0)
    max_denoising_steps: Int32 | None = passed_on("max_denoising_steps")
    t_min: Float32 | None = passed_on("t_min")
    t_max: Float32 | None = passed_on("t_max")
    entropy_bound: Float32 | None = passed_on("entropy_bound")
    confidence_threshold: Float32 | None = passed_on("confidence_threshold")
    stability_threshold: Int32 | None = passed_on("stability_threshold")

    regex: Text | None = Field(default=None, description="a regular expression that the whole answer matches")
    choice: list[Text] | None = Field(default=None, min_length=1, description="texts, one of which is the answer")
    whitespace: Literal["spaced", "compact", "flexible"] | None = Field(
        default=None, description="between the tokens of JSON; default spaced, as Python writes it"
    )

    presence_penalty: Any = only(0, instead=_PENALTY)
    frequency_penalty: Any = only(0, instead=_PENALTY)
    logit_bias: Any = only({}, instead="leave it out, or send the tokens that are allowed from Python")
    # of other servers' clients
    top_k: Any = only(0, -1, instead=_ENTROPY)
    min_p: Any = only(0, instead=_ENTROPY)
    repetition_penalty: Any = only(1, instead=_PENALTY)
    length_penalty: Any = only(0, 1, instead=_PENALTY)

    metadata: Annotated[Any, Pairs] = ignored({}, why=_STORED)
    store: Any = ignored(False, why=_STORED)
    service_tier: Any = ignored("auto", "default", why="there is one tier; set priority")
    prompt_cache_key: Any = ignored(why=_CACHE)
    prompt_cache_retention: Any = ignored(why=_CACHE)
    prompt_cache_options: Any = ignored({}, why=_CACHE)
    safety_identifier: Any = ignored(why="nobody's use is watched")

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.draft_every and not self.stream:
            raise wrong("draft_every", "only with stream=true")
        asked = self.grammars()
        if len(asked) > 1:
            raise wrong("regex" if self.regex is not None else "choice", "one form of the answer at a time")
        if self.whitespace is not None and not any("json" in name for form in asked for name in form):
            raise wrong("whitespace", "only where the answer is to be JSON")
        if (self.seed or 0) + self.choices - 1 > _MOST_SEED:
            raise wrong("seed", "seed + n - 1 has to fit into 64 bits")
        return self

    def without_effect(self) -> list[str]:
        found = super().without_effect()
        if self.stream_options is None or self.stream:
            return found
        return [name for name in found if not name.startswith("stream_options.")] + ["stream_options"]

    @property
    def choices(self) -> int:
        """Answers to each prompt."""
        return self.n or 1

    def grammars(self) -> list[Grammar]:
        """Every form that the answer is asked to have; no more than one can be."""
        return list(grammars(None, regex=self.regex, choice=self.choice))

    def form(self) -> Grammar | None:
        """The form of an answer in text; None for any."""
        asked = self.grammars()
        more = {} if self.whitespace is None else {"whitespace": self.whitespace}
        return {**asked[0], **more} if asked else None

    def grammar(self) -> Grammar | None:
        """As the served model takes it; None for any answer."""
        return self.form()

    def inputs(self) -> dict[str, Any]:
        """The served model's inputs but for prompt, seed and stream; None where the request is silent."""
        names = [name for name in Common.model_fields if self.renamed.get(name, name) in ALL_INPUTS]
        given = {self.renamed.get(name, name): getattr(self, name) for name in names if name not in _APART}
        if isinstance(given["stop_words"], str):
            given["stop_words"] = [given["stop_words"]]
        given["stop_words"] = given["stop_words"] or None
        given["grammar"] = self.grammar()
        if self.user is not None and len(self.user.encode()) > _MOST_NAME:
            given["client"] = hashlib.sha256(self.user.encode()).hexdigest()
        return given

    def first_seed(self) -> int:
        """Seed of the first answer; drawn, where the request asks for that."""
        # So that clients can write it as a signed integer, and n of them fit.
        return secrets.randbelow(2**62) if self.seed == _DRAWN else self.seed or 0


# Neither the sampler's nor the same for every answer, or refused.
_APART = (
    "seed",
    "stream",
    "presence_penalty",
    "frequency_penalty",
    "top_k",
    "min_p",
    "repetition_penalty",
    "length_penalty",
)


def limited(limit: int | None) -> dict[str, Any]:
    """The client's arguments for an answer of at most ``limit`` tokens, and no more than the context has left."""
    return {"max_tokens": limit, "cut_max_tokens": None if limit is None else True}


class ChatTemplateKwargs(Strict):
    """``chat_template_kwargs``: what asks for the template as it is."""

    enable_thinking: Any = only(False, instead=THINKING)
    thinking: Any = only(False, instead=THINKING)


class ChatRequest(Common):
    """Body of ``POST /v1/chat/completions``."""

    messages: Annotated[list[Message], Field(fail_fast=True, min_length=1, max_length=MOST_MESSAGES), Parts]
    max_completion_tokens: Int32 | None = Field(default=None, ge=1, description="another name of max_tokens")
    chat_template_kwargs: ChatTemplateKwargs | None = None

    logprobs: Any = only(False, instead=LOGPROBS)
    top_logprobs: Any = only(0, instead=LOGPROBS)
    tools: Annotated[list[ChatTool], Field(fail_fast=True, max_length=MOST_TOOLS)] | None = Field(
        default=None, description="functions that the model may call"
    )
    tool_choice: ChatChoice = Field(default=None, description="whether it calls, or which of them; default auto")
    parallel_tool_calls: bool | None = Field(default=None, description="several calls in an answer; default true")
    functions: Any = only([], instead=TOOLS)
    function_call: Any = only("none", "auto", instead=TOOLS)
    response_format: ResponseFormat | None = None
    modalities: Any = only(["text"], instead="this model writes text alone")
    audio: Any = only(instead="this model writes text alone")
    prediction: Any = ignored(why="a canvas is denoised as quickly without")
    reasoning_effort: Any = ignored("none", why=THINKING)
    verbosity: Any = ignored("medium", why="say in the prompt how long the answer is to be")
    web_search_options: Any = only(instead=OURS)

    @model_validator(mode="after")
    def _one_limit(self) -> Self:
        if None not in (self.max_tokens, self.max_completion_tokens) and self.max_tokens != self.max_completion_tokens:
            raise wrong("max_completion_tokens", "not the same as max_tokens")
        require_one_name(self.messages)
        self.grammar()
        if (i := unasked([message.plain() for message in self.messages])) is not None:
            raise wrong(f"messages[{i}].tool_call_id", UNASKED)
        return self

    def grammars(self) -> list[Grammar]:
        return list(grammars(self.response_format, regex=self.regex, choice=self.choice))

    def grammar(self) -> Grammar | None:
        choice = self.tool_choice.function if isinstance(self.tool_choice, ChatNamed) else self.tool_choice
        functions = [tool.function for tool in self.tools or ()]
        form = self.form()
        return tools_grammar(functions, choice, self.parallel_tool_calls, form) or form

    @property
    def limit(self) -> int | None:
        """Most tokens of an answer; None for all that the context has left."""
        return self.max_tokens if self.max_tokens is not None else self.max_completion_tokens

    def without_effect(self) -> list[str]:
        found = super().without_effect()
        kwargs = self.chat_template_kwargs
        return [*found, "chat_template_kwargs"] if kwargs is not None and kwargs.model_fields_set else found

    def prompts(self) -> list[dict[str, Any]]:
        """The client's arguments for each prompt."""
        messages = [message.plain() for message in self.messages]
        unasked(messages)
        return [{"messages": with_instruction(messages, self.form()), **limited(self.limit)}]


class CompletionRequest(Common):
    """Body of ``POST /v1/completions``."""

    prompt: Annotated[
        Annotated[Text, Tag("~text")]
        | Annotated[list[Text], Field(fail_fast=True, min_length=1, max_length=MOST_CHOICES), Tag("~texts")]
        | Annotated[Tokens, Field(min_length=1), Tag("~tokens")]
        | Annotated[
            list[Annotated[Tokens, Field(min_length=1)]],
            Field(fail_fast=True, min_length=1, max_length=MOST_CHOICES),
            Tag("~lists of tokens"),
        ],
        Discriminator(lambda value: _prompt_shape(value)),
    ] = Field(description="text, token ids, or a list of either, answered as several choices")
    suffix: Text | None = passed_on("suffix")

    best_of: Any = only(1, instead="send n, and choose")
    echo: Any = only(False, instead="prepend the prompt in the client")
    logprobs: Any = only(instead=LOGPROBS)

    @model_validator(mode="after")
    def _not_too_many(self) -> Self:
        if len(self.prompts()) * self.choices > MOST_CHOICES:
            raise wrong("n", f"prompts times n is at most {MOST_CHOICES}")
        if self.suffix is not None and self.draft_every:
            raise wrong("draft_every", "not with suffix, which is answered in one piece")
        return self

    @property
    def limit(self) -> int | None:
        """Most tokens of an answer; None for all that the context has left."""
        return self.max_tokens

    def prompts(self) -> list[dict[str, Any]]:
        """The client's arguments for each prompt."""
        many = isinstance(self.prompt, list) and not isinstance(self.prompt[0], int)
        each: list[Any] = list(self.prompt) if many else [self.prompt]
        # An empty suffix asks for no infilling; the length of a gap is not cut, nor one limit for several prompts.
        alone = len(each) == 1 and not self.suffix
        more = {"suffix": self.suffix or None} | (limited(self.limit) if alone else {"max_tokens": self.limit})
        return [{"prompt" if isinstance(one, str) else "input_ids": one, **more} for one in each]


def _prompt_shape(value: Any) -> str:
    if not isinstance(value, list):
        return "~text"
    first = value[0] if value else ""
    if isinstance(first, list):
        return "~lists of tokens"
    return "~texts" if isinstance(first, str) else "~tokens"
