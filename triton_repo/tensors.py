"""The tensors of the served model: one description, from which the config is rendered and both ends are checked."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal

MODEL = "diffgemma"
UNARY_MODEL = "diffgemma_unary"  # one response per request, for plain ModelInfer
DECIDE_MODEL = "diffgemma_decide"  # questions about a text; one response, for plain ModelInfer
TOKEN_MODEL = "tensorrt_llm"  # token level, under the names of TensorRT-LLM's model
# https://www.w3.org/TR/trace-context/#traceparent-header-field-values: no id is all zeros
TRACEPARENT = re.compile(r"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
# Request parameters by which an entry ends the request that it passed on; unguessable, so nobody else's.
CANCELLATION_ID, CANCEL = "diffgemma_cancellation_id", "diffgemma_cancel"
# Requests that one entry passes on at a time. Until the first response to each of them a thread of tritonserver's
# python backend waits (32 by default), and a cancellation needs another one.
FORWARDED = 64
BACKEND_THREADS = FORWARDED + 8
# Environment variable that tells the served model which engine bundle to load.
ENGINE_VARIABLE = "DIFFGEMMA_ENGINE"
# Environment variable with the numbers of the CPUs that the engine may run on; empty for those of the served model.
ENGINE_CPUS_VARIABLE = "DIFFGEMMA_ENGINE_CPUS"
# Environment variable that names a file; while it exists the served model takes no more requests.
DRAIN_VARIABLE = "DIFFGEMMA_DRAIN"
# Environment variable that lets prompts into the log, when it is 1.
LOG_PROMPTS_VARIABLE = "DIFFGEMMA_LOG_PROMPTS"
# Environment of tritonserver and its models' processes, not of the engine: glibc's limits grow with what was freed, and
# each large request would leave its size behind.
ALLOCATOR = {"MALLOC_TRIM_THRESHOLD_": str(2**20), "MALLOC_MMAP_THRESHOLD_": str(2**20)}

DType = Literal["STRING", "BOOL", "INT32", "UINT64", "FP32"]


@dataclass(frozen=True)
class Tensor:
    """One input or output; on the wire its shape is ``[1, *dims]``, the leading 1 being Triton's batch.

    Args:
        name: as clients write it.
        dtype: as ``config.pbtxt`` spells it, without ``TYPE_``.
        about: what it means, with unit and default; a comment in ``config.pbtxt``.
        dims: ``(1,)`` for a scalar, ``(-1,)`` for a list.
        most_items: of a list; a longer one is refused unread.
        most_bytes: of each text, in UTF-8.
    """

    name: str
    dtype: DType
    about: str
    dims: tuple[int, ...] = (1,)
    most_items: int = 1024
    most_bytes: int = 1024


@dataclass(frozen=True)
class Unsupported:
    """An input that TensorRT-LLM's clients send and this model cannot honour.

    Args:
        tensor: its name and type, declared so that the refusal is ours and says what to do.
        neutral: values that ask for nothing, and so are accepted.
        instead: what to do instead.
    """

    tensor: Tensor
    neutral: tuple[Any, ...]
    instead: str


def _unsupported(
    name: str, dtype: DType, neutral: tuple[Any, ...], instead: str, dims: tuple[int, ...] = (1,)
) -> Unsupported:
    accepted = f"accepted only as {' or '.join(repr(value) for value in neutral)}" if neutral else "refused"
    return Unsupported(Tensor(name, dtype, f"{accepted}: {instead}", dims), neutral, instead)


# Denoising steps per canvas that a request may ask for, where the checkpoint itself does not take more: one that asks
# for billions would hold its place for as long as its client stays.
MOST_STEPS = 1024
_TEXT = 16 * 2**20  # bytes; four for each token of the longest context

INPUTS: tuple[Tensor, ...] = (
    Tensor("text_input", "STRING", "raw text; exactly one of text_input, messages and input_ids", most_bytes=_TEXT),
    Tensor(
        "messages",
        "STRING",
        "JSON list of {role, content}, rendered with the checkpoint's chat template",
        most_bytes=_TEXT,
    ),
    Tensor("input_ids", "INT32", "token ids of the prompt", (-1,), most_items=_TEXT // 4),
    Tensor(
        "suffix",
        "STRING",
        "text after the answer, which is the max_tokens tokens that lead to it: infilling",
        most_bytes=_TEXT,
    ),
    Tensor("max_tokens", "INT32", "most tokens to return; default: all that the context has left"),
    Tensor(
        "cut_max_tokens",
        "BOOL",
        "whether a max_tokens beyond what the context has left becomes what is left; default false: it is refused",
    ),
    Tensor("seed", "UINT64", "all randomness follows from it; default 0"),
    Tensor("random_seed", "UINT64", "another name of seed"),
    Tensor("stream", "BOOL", "one response per block; default false: one response with everything"),
    Tensor("drafts", "BOOL", "with stream: also the provisional canvas after every denoising step; default false"),
    Tensor(
        "draft_every", "INT32", "with stream: the provisional canvas after every so many denoising steps; default 0"
    ),
    Tensor("stop_words", "STRING", "texts before the first of which the answer is cut; empty ones: none", (-1,), 64),
    Tensor("stop_token_ids", "INT32", "token ids before the first of which the answer is cut", (-1,)),
    Tensor("end_id", "INT32", "the one end of sequence, instead of the checkpoint's; -1: none"),
    Tensor("pad_id", "INT32", "any: no output is padded"),
    Tensor("min_tokens", "INT32", "no end of sequence and no stop token before this position; default 0"),
    Tensor("min_length", "INT32", "another name of min_tokens"),
    Tensor("canvas_length", "INT32", "tokens per canvas; 0: the narrowest that holds max_tokens; default: the model's"),
    Tensor("priority", "INT32", "lower goes first; default 0"),
    Tensor("client", "STRING", "whose request it is: of equal priority, clients take turns"),
    Tensor(
        "cache_salt", "STRING", "what is cached of a prompt is used again only for requests with the same; default none"
    ),
    Tensor("deadline", "FP32", "seconds from arrival after which the request is ended; default: never"),
    Tensor("ignore_eos", "BOOL", "go on to max_tokens whatever the model writes; default false"),
    Tensor(
        "max_denoising_steps",
        "INT32",
        f"most steps per canvas, up to {MOST_STEPS} or the checkpoint's, if those are more; default: the checkpoint's",
    ),
    Tensor("t_min", "FP32", "temperature at the end of the schedule; default: the checkpoint's"),
    Tensor("t_max", "FP32", "temperature at its start; default: the checkpoint's"),
    Tensor("entropy_bound", "FP32", "nats of summed entropy accepted in one step; default: the checkpoint's"),
    Tensor("confidence_threshold", "FP32", "mean entropy in nats at which a stable canvas stops; default likewise"),
    Tensor(
        "stability_threshold",
        "INT32",
        f"earlier steps that the argmax canvas must equal, up to {MOST_STEPS} likewise; default likewise",
    ),
    Tensor("temperature", "FP32", "times the schedule's where tokens are drawn, 0 to 2; 0: the likeliest; default 1"),
    Tensor("top_p", "FP32", "draw from the likeliest tokens that weigh as much, 0 to 1; default 1: from all"),
    Tensor(
        "grammar",
        "STRING",
        "form of the answer, JSON: one of json_schema, json_object, regex, choice, tools, which messages then declare;"
        " default: any",
        most_bytes=2**20,
    ),
    Tensor(
        "questions",
        "STRING",
        "JSON list of {type, instructions, ...}: they are answered with probabilities, and nothing is generated",
        most_bytes=4 * 2**20,
    ),
    Tensor("samples", "INT32", "with questions: reads with different noise that are averaged, 1 to 16; default 1"),
    Tensor("order", "STRING", "with questions: permute averages over orders of the options; default given"),
    Tensor("joint", "BOOL", "with questions: ask as many at once as fit into a canvas; default false: each alone"),
    Tensor("traceparent", "STRING", "W3C trace context that this request's spans belong to", most_bytes=55),
    Tensor("return_num_input_tokens", "BOOL", "send num_input_tokens; default true"),
    Tensor("return_num_output_tokens", "BOOL", "send num_output_tokens; default true"),
)

SAMPLER_INPUTS = (
    "max_denoising_steps",
    "t_min",
    "t_max",
    "entropy_bound",
    "confidence_threshold",
    "stability_threshold",
)

_ENTROPY = "tokens are accepted by entropy, set entropy_bound"
_CUT = "leave them out, or send the tokens that are allowed from Python"
_NO_PENALTY = "leave it out: a canvas is denoised in parallel, without penalties"
_ONE = "send one request a sample, each with its own seed"
UNSUPPORTED: tuple[Unsupported, ...] = (
    _unsupported("top_k", "INT32", (0,), _ENTROPY),
    _unsupported("min_p", "FP32", (0.0,), _ENTROPY),
    _unsupported("beam_width", "INT32", (1,), _ONE),
    _unsupported("num_return_sequences", "INT32", (1,), _ONE),
    _unsupported("bad_words", "STRING", ("",), _CUT, (-1,)),
    _unsupported("repetition_penalty", "FP32", (1.0,), _NO_PENALTY),
    _unsupported("presence_penalty", "FP32", (0.0,), _NO_PENALTY),
    _unsupported("frequency_penalty", "FP32", (0.0,), _NO_PENALTY),
    _unsupported("length_penalty", "FP32", (0.0, 1.0), _NO_PENALTY),
    _unsupported("exclude_input_in_output", "BOOL", (True,), "prepend the prompt in the client"),
    _unsupported("return_log_probs", "BOOL", (False,), "read entropy, the canvas's mean in nats"),
)

OUTPUTS: tuple[Tensor, ...] = (
    Tensor("text_output", "STRING", "new text; for a draft the text of the canvas as it stands"),
    Tensor("output_ids", "INT32", "its token ids", (-1,)),
    Tensor("finish_reason", "STRING", "stop, length, cancelled or deadline on the last response, empty before"),
    Tensor("provisional", "BOOL", "true for a draft: the next response may change any of it"),
    Tensor("canvas_index", "INT32", "which canvas of the request, from 0; without stream the last"),
    Tensor("denoising_steps", "INT32", "steps done on this canvas; without stream on all of them"),
    Tensor("max_tokens", "INT32", "most tokens that the answer could get: as asked for, or what the context had left"),
    Tensor("canvas_steps", "INT32", "steps of each canvas that is part of this response; left out of drafts", (-1,)),
    Tensor(
        "step_entropies",
        "FP32",
        "the canvas's mean entropy after each of these steps, in nats, canvas after canvas; likewise",
        (-1,),
    ),
    Tensor("entropy", "FP32", "mean entropy of the canvas after its last step, in nats; left out before a first step"),
    Tensor(
        "form_log_probability",
        "FP32",
        "with grammar: of each of these canvases, log-probability (nats) that it keeps to the form by itself; likewise",
        (-1,),
    ),
    Tensor("answers", "STRING", "with questions: JSON list of an answer to each, in order; empty unless all are read"),
    Tensor("tool_calls", "STRING", "calls that are whole, JSON of name and arguments each; left out without", (-1,)),
    Tensor("num_input_tokens", "INT32", "tokens of the prompt"),
    Tensor("num_cached_tokens", "INT32", "of them, found in the cache of an earlier request; on the last response"),
    Tensor("num_output_tokens", "INT32", "tokens committed so far"),
)

# The same model for callers with a tokenizer of their own, under the names of TensorRT-LLM's token-level model:
# its input -> the input above that it is.
TOKEN_INPUTS: dict[str, str] = {
    "input_ids": "input_ids",
    "input_lengths": "",  # how many of input_ids count
    "request_output_len": "max_tokens",
    "streaming": "stream",
    "seed": "seed",
    "random_seed": "random_seed",
    "end_id": "end_id",
    "pad_id": "pad_id",
    "min_length": "min_length",
    "priority": "priority",
    "client": "client",
    "cache_salt": "cache_salt",
    "deadline": "deadline",
    "traceparent": "traceparent",
    **{name: name for name in SAMPLER_INPUTS},
    "beam_width": "beam_width",
    "num_return_sequences": "num_return_sequences",
    "temperature": "temperature",
    "runtime_top_k": "top_k",
    "runtime_top_p": "top_p",
    "len_penalty": "length_penalty",
    "repetition_penalty": "repetition_penalty",
    "presence_penalty": "presence_penalty",
    "frequency_penalty": "frequency_penalty",
    "return_log_probs": "return_log_probs",
}
TOKEN_OUTPUTS: tuple[Tensor, ...] = (
    Tensor("output_ids", "INT32", "new token ids, [1, beams = 1, tokens]", (-1, -1)),
    Tensor("sequence_length", "INT32", "how many they are, [1, beams = 1]", (-1,)),
    *(t for t in OUTPUTS if t.name in ("finish_reason", "canvas_index", "denoising_steps", "entropy")),
)

# What goes with questions, of the inputs and outputs above.
DECIDE_INPUTS: tuple[str, ...] = (
    "text_input",
    "messages",
    "questions",
    "samples",
    "order",
    "joint",
    "seed",
    "random_seed",
    "priority",
    "client",
    "cache_salt",
    "deadline",
    "traceparent",
)
DECIDE_OUTPUTS: tuple[str, ...] = (
    "answers",
    "finish_reason",
    "num_input_tokens",
    "num_cached_tokens",
    "num_output_tokens",
)

SUPPORTED = ", ".join(tensor.name for tensor in INPUTS)
ALL_INPUTS: dict[str, Tensor] = {t.name: t for t in (*INPUTS, *(u.tensor for u in UNSUPPORTED))}
ALL_OUTPUTS: dict[str, Tensor] = {t.name: t for t in OUTPUTS}
