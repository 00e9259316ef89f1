"""Chat templates and tokenizers of several kinds, for tests of what a conversation becomes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer as RustTokenizer
from tokenizers import decoders, models, normalizers
from transformers import PreTrainedTokenizerFast

from nemo_diffgemma.chat import CHAT_TEMPLATE
from nemo_diffgemma.new_tokenizer import SPECIAL_TOKENS, train_tokenizer
from nemo_diffgemma.tokenizer import Tokenizer

MORE = ("<|tool>", "<tool|>", "<|tool_call>", "<tool_call|>", "<|tool_response>", "<tool_response|>", '<|"|>')
MORE += ("<|channel>", "<channel|>", "<|image|>")
# In the manner of Gemma 4's: texts are trimmed, thoughts are taken out of answers, the first message may be the
# system's, tools are declared there, and a generation prompt begins with an empty thought.
GEMMA = """\
{%- macro say(text) -%}
    {%- set kept = namespace(text='') -%}
    {%- for part in text.split('<channel|>') -%}
        {%- set kept.text = kept.text + part.split('<|channel>')[0] -%}
    {%- endfor -%}
    {{- kept.text | trim -}}
{%- endmacro -%}
{%- macro argument(value) -%}
    {%- if value is string -%}
        {{- '<|"|>' + value + '<|"|>' -}}
    {%- elif value is mapping -%}
        {{- '{' -}}
        {%- for key, item in value | dictsort -%}
            {{- key + ':' + argument(item) + (',' if not loop.last else '') -}}
        {%- endfor -%}
        {{- '}' -}}
    {%- else -%}
        {{- value | tojson -}}
    {%- endif -%}
{%- endmacro -%}
{{- bos_token -}}
{%- set rest = messages -%}
{%- if tools or messages[0]['role'] == 'system' -%}
    {{- '<|turn>system\\n' -}}
    {%- if messages[0]['role'] == 'system' -%}
        {{- messages[0]['content'] | trim -}}
        {%- set rest = messages[1:] -%}
    {%- endif -%}
    {%- for tool in tools or [] -%}
        {{- '<|tool>declaration:' + tool['function']['name'] + '<tool|>' -}}
    {%- endfor -%}
    {{- '<turn|>\\n' -}}
{%- endif -%}
{%- for message in rest -%}
    {%- if message['role'] == 'tool' -%}
        {{- '<|tool_response>' + argument(message['content']) + '<tool_response|>' -}}
    {%- else -%}
        {{- '<|turn>' + ('model' if message['role'] == 'assistant' else message['role']) + '\\n' -}}
        {%- for call in message['tool_calls'] or [] -%}
            {{- '<|tool_call>call:' + call['function']['name'] + argument(call['function']['arguments']) -}}
            {{- '<tool_call|>' -}}
        {%- endfor -%}
        {{- say(message['content']) if message['role'] == 'assistant' else message['content'] | trim -}}
        {{- '<turn|>\\n' -}}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '<|turn>model\\n<|channel>thought\\n<channel|>' -}}
{%- endif -%}
"""
ALTERNATING = """\
{{- bos_token -}}
{%- for message in messages -%}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{- raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') -}}
    {%- endif -%}
    {{- '<|turn>' + message['role'] + '\\n' + message['content'] + '<turn|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|turn>assistant\\n' -}}{%- endif -%}
"""
# Nobody's, with holes: a text stands directly behind and before what could be parts of a control token.
LEAKY = """\
{%- for message in messages -%}
<|turn>{{ message['role'] }} <{{ message['content'] | trim }}> <|{{ message['content'] }}|><turn|>
{%- endfor -%}
"""
WORDS = ["red", "green", "blue", "chair", "table", "lamp", "größe", "naïve", "日本", "12", "345", "user", "model"]


def tokenizer(folder: Path, template: str = CHAT_TEMPLATE, more: Sequence[str] = MORE) -> Tokenizer:
    """The project's own kind, with ``more`` control tokens."""
    train_tokenizer([" ".join(WORDS)] * 3, 300, folder)
    fast = PreTrainedTokenizerFast.from_pretrained(str(folder))
    fast.add_special_tokens({"additional_special_tokens": list(more)})
    return save(fast, folder, template)


def sentencepiece(folder: Path, template: str = CHAT_TEMPLATE) -> Tokenizer:
    """Of Gemma's kind: spaces are a character of their own, what is not in the vocabulary is bytes."""
    pieces = [*SPECIAL_TOKENS, *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "▁▁", *"abdenortu<|>", "ur", "▁t"]
    inner = RustTokenizer(
        models.BPE(
            {piece: index for index, piece in enumerate(pieces)},
            [("▁", "▁"), ("u", "r"), ("▁", "t")],
            byte_fallback=True,
            unk_token="<unk>",
        )
    )
    inner.normalizer = normalizers.Replace(" ", "▁")
    inner.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    inner.add_tokens(["\n\n", "▁▁▁", "<table>"])  # as in Gemma's file: texts that are one token
    fast = PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", eos_token="<eos>", bos_token="<bos>")
    fast.add_special_tokens({"additional_special_tokens": [*SPECIAL_TOKENS[4:], *MORE]})
    return save(fast, folder, template)


def save(fast: PreTrainedTokenizerFast, folder: Path, template: str) -> Tokenizer:
    """Write a tokenizer with a chat template, and open it."""
    fast.chat_template = template
    fast.save_pretrained(str(folder))
    return Tokenizer(folder)
