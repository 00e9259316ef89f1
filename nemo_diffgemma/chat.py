"""What a chat template renders."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

Message = dict[str, Any]
# What Gemma 4 writes calls of tools with.
CALL, CALL_END, QUOTE, RESULT = "<|tool_call>", "<tool_call|>", '<|"|>', "<|tool_response>"
_VALUE = (
    "{%- macro written(value) -%}"
    "{%- if value is string -%}QUOTE{{ value }}QUOTE"
    "{%- elif value is boolean -%}{{ 'true' if value else 'false' }}"
    "{%- elif value is none -%}null"
    "{%- elif value is mapping -%}{{ '{' }}"
    "{%- for key, item in value | dictsort -%}{{ ',' if not loop.first }}{{ key }}:{{ written(item) }}{%- endfor -%}"
    "{{ '}' }}"
    "{%- elif value is sequence -%}["
    "{%- for item in value -%}{{ ',' if not loop.first }}{{ written(item) }}{%- endfor -%}]"
    "{%- else -%}{{ value }}{%- endif -%}"
    "{%- endmacro -%}"
).replace("QUOTE", QUOTE)
# Of the tokenizers that are trained here: turns and tools as the released template writes them. A turn goes on behind
# the results of its calls.
CHAT_TEMPLATE = (
    _VALUE + "{{ bos_token }}"
    "{%- set turn = namespace(open=false) -%}"
    "{%- set first = messages[0]['content'] if messages[0]['role'] == 'system' else '' -%}"
    "{% if tools %}<|turn>system\n{{ first }}"
    "{% for tool in tools %}<|tool>declaration:{{ tool['function']['name'] }}{{ '{' }}"
    "description:{{ written(tool['function']['description'] or '') }},"
    "parameters:{{ written(tool['function']['parameters'] or {}) }}{{ '}' }}<tool|>{% endfor %}<turn|>\n{% endif %}"
    "{% for message in messages %}"
    "{% if message['role'] == 'tool' %}"
    "<|tool_response>response:{{ message['name'] }}{{ '{' }}value:{{ written(message['content']) }}{{ '}' }}"
    "<tool_response|>"
    "{% set turn.open = true %}"
    "{% elif not (tools and loop.first and message['role'] == 'system') %}"
    "{% set model = message['role'] == 'assistant' %}"
    "{% if turn.open and not model %}<turn|>\n{% endif %}"
    "{% if not (turn.open and model) %}<|turn>{{ 'model' if model else message['role'] }}\n{% endif %}"
    "{{ message['content'] or '' }}"
    "{% for call in message['tool_calls'] or [] %}"
    "<|tool_call>call:{{ call['function']['name'] }}{{ written(call['function']['arguments']) }}<tool_call|>"
    "{% endfor %}"
    "{% set turn.open = model and not loop.last and loop.nextitem['role'] == 'tool' %}"
    "{% if not turn.open %}<turn|>\n{% endif %}"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt and not turn.open %}<|turn>model\n{% endif %}"
)


class Chat(NamedTuple):
    """A conversation as chat templates take it.

    Args:
        messages: with ``role`` and ``content``, and what else the template knows.
        tools: declarations of functions.
    """

    messages: Sequence[Message]
    tools: Sequence[Any] = ()
