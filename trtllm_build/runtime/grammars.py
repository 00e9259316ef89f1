"""The grammars of an engine's requests."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from typing import Any

from nemo_diffgemma.chat import CALL, CALL_END, QUOTE, RESULT
from nemo_diffgemma.errors import FieldError, require
from nemo_diffgemma.tokenizer import Tokenizer
from trtllm_build.grammar.compile import compile_grammar
from trtllm_build.grammar.kept import Kept
from trtllm_build.grammar.token_automaton import TokenAutomaton
from trtllm_build.grammar.tools import ToolTokens, read_calls
from trtllm_build.grammar.transitions import Transitions
from trtllm_build.grammar.vocabulary import Vocabulary, read_vocabulary


class Grammars:
    """Compiles grammars for one tokenizer. Threads may share it.

    Args:
        tokenizer: of the engine; None for an engine without one.
        vocab_size: token ids run from 0 to this, exclusive.
        eos_ids: tokens that end an answer.
    """

    def __init__(self, tokenizer: Tokenizer | None, vocab_size: int, eos_ids: Collection[int]):
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._eos_ids = eos_ids
        self._vocabulary: Vocabulary | None = None
        ids = [None if tokenizer is None else tokenizer.control_id(text) for text in (CALL, CALL_END, QUOTE, RESULT)]
        call, call_end, quote, self._result = ids
        self.tool_tokens = None
        if call is not None and call_end is not None and quote is not None:
            self.tool_tokens = ToolTokens(call, call_end, quote)
        self._laid_out = Kept[Transitions]()

    def prepare(self) -> None:
        """Make now what the first grammar needs of the tokenizer; does nothing where no grammar can be had."""
        with suppress(FieldError):
            _ = self._texts().trie

    def prepare_calls(self) -> None:
        """Make now what :meth:`calls` needs; does nothing for a model that calls no tools."""
        if self.tool_tokens is not None:
            with suppress(FieldError):
                self._texts()

    def _texts(self) -> Vocabulary:
        if self._vocabulary is None:
            assert self._tokenizer is not None
            file, controls = self._tokenizer.definition, self._tokenizer.control_ids
            self._vocabulary = read_vocabulary(file, controls, self._vocab_size)
        return self._vocabulary

    def automaton(self, grammar: Mapping[str, Any]) -> TokenAutomaton:
        """Compile a grammar.

        Raises:
            FieldError: for a grammar that cannot be guaranteed, and without a tokenizer.
        """
        require(
            self._tokenizer is not None,
            field="grammar",
            value=dict(grammar),
            allowed="nothing: this engine has no tokenizer",
            fix="add the tokenizer's files to the checkpoint and build again",
        )
        ends = set(self._eos_ids)
        if "tools" not in grammar and ends != {self._result}:
            ends.discard(self._result or -1)  # it asks for a call's result, and ends nothing else
        return compile_grammar(grammar, self._texts(), ends, self.tool_tokens)

    def calls(self, ids: Sequence[int]) -> list[tuple[str, Any]]:
        """Names and arguments of the calls in an answer of a grammar of tools, as far as they are whole."""
        assert self.tool_tokens is not None, "others have been refused"
        end = max((i + 1 for i, token in enumerate(ids) if token == self.tool_tokens.call_end), default=0)
        return read_calls(ids[:end], self._texts().texts, self.tool_tokens)

    def transitions(self, grammar: Mapping[str, Any] | TokenAutomaton) -> Transitions:
        """Compile a grammar that is not yet, and lay it out for inference.

        Raises:
            FieldError: as :meth:`automaton` does.
        """
        # compiled when it is imported, the first time for seconds: not when a canvas waits for it
        from trtllm_build.grammar import walks  # noqa: F401

        automaton = grammar if isinstance(grammar, TokenAutomaton) else self.automaton(grammar)
        # from the processes that read requests it comes as another object every time
        if (found := self._laid_out.find(automaton.key)) is not None:
            return found
        return self._laid_out.keep(automaton.key, Transitions.of(automaton), automaton.bytes)
