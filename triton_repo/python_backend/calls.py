"""An answer that may call tools, divided into its text and its calls."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

from trtllm_build.runtime.grammars import Grammars
from trtllm_build.runtime.request import Block


class Calls:
    """Of one answer, block after block.

    Args:
        grammars: of the engine.
        decode: text of token ids.
    """

    def __init__(self, grammars: Grammars, decode: Callable[[Sequence[int]], str]):
        assert grammars.tool_tokens is not None, "others have been refused"
        self._grammars, self._decode = grammars, decode
        self._call = grammars.tool_tokens.call
        self._ids: list[int] = []
        self._shown = self._told = 0  # characters of its text, calls

    @property
    def begun(self) -> bool:
        """Whether the text has ended, and calls follow."""
        return self._call in self._ids

    def add(self, block: Block) -> tuple[str, list[str]]:
        """New text, and the calls that have become whole: JSON of ``name`` and ``arguments`` each."""
        self._ids += block.token_ids
        text, whole = block.text, list[str]()
        if self.begun:
            # what the block has behind is a call, whose text is none
            begin = self._ids.index(self._call)
            text = self._decode(self._ids[:begin])[self._shown :]
            found = self._grammars.calls(self._ids[begin:])[self._told :]
            whole = [json.dumps({"name": name, "arguments": value}, ensure_ascii=False) for name, value in found]
        self._shown += len(text)
        self._told += len(whole)
        return text, whole

    def draft(self, ids: Sequence[int], text: str) -> str:
        """The text of a canvas as it stands, of these tokens."""
        if self.begun:
            return ""
        if self._call not in ids:
            return text
        return self._decode([*self._ids, *ids[: list(ids).index(self._call)]])[self._shown :]
