"""What is right for each body: accepted where it is harmless, refused by name where ignoring it changes the meaning."""

from __future__ import annotations

from dataclasses import dataclass

from triton_repo.gateway.headers import MAX_TOKENS, SEED

BASELINE = "00-baseline"


@dataclass(frozen=True)
class Right:
    """How a body is to be answered.

    Args:
        status: of HTTP.
        param: field that the refusal names.
        ignored: fields that an acceptance names as without effect.
        headers: of the answer's own, those that must be there.
        alike: the text is the baseline's, whose prompt this is too.
    """

    status: int = 200
    param: str | None = None
    ignored: tuple[str, ...] = ()
    headers: tuple[str, ...] = ()
    alike: bool = False


def _taken(*ignored: str, headers: tuple[str, ...] = ()) -> Right:
    return Right(ignored=ignored, headers=headers)


def _same(*ignored: str) -> Right:
    return Right(ignored=ignored, alike=True)


def _refused(param: str) -> Right:
    return Right(400, param)


RIGHT: dict[str, Right] = {
    BASELINE: _same(),
    "01-assistant-null-content": _taken(),
    "02-assistant-no-content": _taken(),
    "04-content-empty-list": _taken(),
    "05-part-cache-control": _same("messages.content.cache_control"),
    "06-message-id": _same("messages.id"),
    "07-user-name": _same("messages.name"),
    "09-temperature-0": _taken(),
    "10-temperature-07": _taken(),
    "11-seed-minus-1": _taken(headers=(SEED,)),
    "12-seed-2e64": _refused("seed"),
    "13-stop-five": _taken(),
    "14-stop-empty-string": _same(),
    "16-stream-options-no-stream": _same("stream_options"),
    "17-max-tokens-beyond-context": _taken(headers=(MAX_TOKENS,)),
    "18-max-tokens-minus-1": _refused("max_tokens"),
    "19-max-tokens-float": _same(),
    "20-metadata": _same("metadata"),
    "21-store-true": _same("store"),
    "22-json-object": _taken(),
    "23-tools": _taken(),
    "24-unknown-top-level": _same("chat_template_kwargs"),
    "25-top-k": _refused("top_k"),
    "26-lone-surrogate": _refused("messages[0].content"),
    "27-nul": _taken(),
    "28-only-system": _taken(),
    "30-reasoning-effort-low": _same("reasoning_effort"),
    "31-logprobs": _refused("logprobs"),
    "32-user-long": _same(),
    "34-image-part": _refused("messages[0].content[1].type"),
    "35-model-empty": _refused("model"),
    "36-no-model": _refused("model"),
    "38-special-eos": _taken(),
    "39-empty-user": _taken(),
    "41-prompt-cache-key": _same("prompt_cache_key", "safety_identifier"),
    "43-tool-choice-required": _refused("tool_choice"),
    "50-assistant-tool-calls": _taken(),
    "51-assistant-empty-tool-calls": _taken(),
    "52-tool-message": _refused("messages[1].tool_call_id"),
    "53-user-null-content": _refused("messages[0].content"),
    "54-user-no-content": _refused("messages[0].content"),
    "55-two-user-names": _refused("messages[2].name"),
    "56-history-of-other-servers": _taken("messages.id", "messages.reasoning_content"),
    "57-refusal-in-history": _refused("messages[1].refusal"),
    "58-part-of-nothing-known": _refused("messages[0].content[0].bold"),
    "59-input-text-part": _refused("messages[0].content[0].type"),
    "60-thinking-asked-for": _refused("chat_template_kwargs.enable_thinking"),
    "61-unknown-template-argument": _refused("chat_template_kwargs.style"),
    "62-service-tier-flex": _same("service_tier"),
    "63-neutral-everywhere": _same(),
    "64-stream-with-usage": _same(),
    "65-max-completion-tokens-beyond-context": _taken(headers=(MAX_TOKENS,)),
    "66-seed-float": _same(),
    "67-max-tokens-half": _refused("max_tokens"),
    "68-max-tokens-text": _refused("max_tokens"),
    "69-max-tokens-bool": _refused("max_tokens"),
    "70-messages-text": _refused("messages"),
    "71-messages-empty": _refused("messages"),
    "72-messages-null": _refused("messages"),
    "73-message-text": _refused("messages[0]"),
    "74-content-number": _refused("messages[0].content"),
    "75-content-object": _refused("messages[0].content"),
    "76-typing-error": _refused("max_token"),
    "77-surrogate-in-a-name": _refused("\\ud83d"),
    "78-surrogate-in-user": _refused("user"),
    "79-surrogate-in-stop": _refused("stop[0]"),
    "80-nul-in-stop-and-user": _same(),
    "81-stop-sixty-five": _refused("stop"),
    "82-stop-number": _refused("stop[0]"),
    "83-line-separators": _taken(),
    "84-n-zero": _refused("n"),
    "85-stream-text": _refused("stream"),
    "86-stream-options-unknown": _refused("stream_options.chunk"),
    "87-reasoning-and-verbosity": _same("reasoning_effort", "verbosity"),
    "88-prediction": _same("prediction"),
    "89-json-schema": _taken(),
    "90-seed-minus-2": _refused("seed"),
    "91-best-of-a-completion": _refused("best_of"),
    "92-completion": _taken("metadata"),
    "93-completion-beyond-context": _taken(headers=(MAX_TOKENS,)),
    "94-deep-metadata": _refused("metadata"),
    "a0-responses": _same(),
    "a1-responses-messages": _taken("input.id"),
    "a2-responses-previous": _refused("previous_response_id"),
    "a3-responses-tools": _refused("tools[0].type"),
    "a4-responses-background": _refused("background"),
    "a5-responses-conversation": _refused("conversation"),
    "a6-responses-agent": _same(
        "prompt_cache_key",
        "text.verbosity",
        "reasoning.effort",
        "reasoning.summary",
        "truncation",
        "include",
    ),
    "a7-responses-json": _taken(),
    "a8-responses-image": _refused("input[0].content[0].type"),
    "a9-responses-function-output": _refused("input[1].call_id"),
    "b0-responses-beyond-context": _taken(headers=(MAX_TOKENS,)),
    "b1-responses-max-tokens": _refused("max_tokens"),
    "b2-responses-stream": _same(),
    "b3-responses-logprobs": _refused("include[0]"),
    "b4-responses-empty-input": _refused("input"),
    "b5-responses-prompt": _refused("prompt"),
}
