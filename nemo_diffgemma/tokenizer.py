"""Text to token ids and back, with the checkpoint's own tokenizer and chat template."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as RustTokenizer
from transformers import PreTrainedTokenizerFast

from nemo_diffgemma.chat import Chat, Message
from nemo_diffgemma.control_tokens import ControlTokens, Masked, Rendered
from nemo_diffgemma.errors import FieldError, require
from nemo_diffgemma.template_check import check_run, check_text
from nemo_diffgemma.tokenizer_files import MARKER, control_tokens, load_files, most_bytes_per_token

_STAND_IN = "\U000f0000"  # a private character in place of a text


class Tokenizer:
    """A checkpoint's tokenizer: ``encode``, ``literal``, ``decode`` and ``chat``.

    Raises:
        FieldError: when the directory holds no tokenizer, or a chat template that must not run.
    """

    def __init__(self, directory: str | Path):
        require(
            (Path(directory) / "tokenizer.json").is_file(),
            field="tokenizer",
            value=str(directory),
            allowed="a directory with a tokenizer.json",
            fix="pass token ids instead of text, or add the tokenizer's files and build again",
        )
        self._inner: PreTrainedTokenizerFast = load_files(Path(directory))
        self._rust: RustTokenizer = self._inner.backend_tokenizer
        # a tokenizer.json may ask for them
        self._rust.no_truncation()
        self._rust.no_padding()
        self._rust.encode_special_tokens = False
        template = self._inner.chat_template or ""
        self._template = "".join(template.values()) if isinstance(template, Mapping) else str(template)
        for text in template.values() if isinstance(template, Mapping) else [self._template]:
            check_text(str(text))
        if self._template:
            check_run(lambda: self._apply([[{"role": "user", "content": "a"}]], None, True)[0])
        ids = control_tokens(self._inner, self._template)
        self.control_ids = frozenset((*ids.values(), *self._inner.all_special_ids))  # tokens that are no text
        self._controls = ControlTokens(ids, self._template)
        # the unknown token also stands for characters that the vocabulary does not have
        self._names = {i: token for token, i in ids.items() if i != self._inner.unk_token_id}
        self._counted = frozenset(self._names.values())

    @cached_property
    def stray_byte(self) -> list[int]:
        """The token of a byte that is no character of its own; of a tokenizer without byte tokens, any or none."""
        # In no vocabulary, so a tokenizer that can fall back to bytes spells it in them.
        return self.encode("\U0010ffff")[-1:]

    def control_id(self, text: str) -> int | None:
        """The id of a control token; None where the tokenizer does not have it."""
        return next((i for i, token in self._names.items() if token == text), None)

    @property
    def definition(self) -> dict[str, Any]:
        """What a ``tokenizer.json`` of it says; read anew each time, since it is large."""
        return dict(json.loads(self._rust.to_str()))

    @cached_property
    def most_bytes_per_token(self) -> int | None:
        """Most bytes of a text's UTF-8 that one token stands for; None where no number can be told from its file."""
        return most_bytes_per_token(self.definition)

    def encode(self, text: str) -> list[int]:
        """Token ids of raw text, as it stands: no template, no token added; control tokens that it spells are those."""
        # of a batch, since for a single text Python's lock is held all the while
        return self._encode([[text]])[0]

    def literal(self, text: str) -> list[int]:
        """Token ids of a text that has no control tokens: what it spells stays text, and is decoded to the same."""
        return self.literals([text])[0]

    def literals(self, texts: Sequence[str]) -> list[list[int]]:
        """:meth:`literal` of each text."""
        return self._encode([self._controls.literal(text) for text in texts])

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Text of token ids, without any clean-up of spaces."""
        text = self._inner.decode(
            list(ids), skip_special_tokens=skip_special_tokens, clean_up_tokenization_spaces=False
        )
        return str(text)

    # -- conversations -----------------------------------------------------------------------------------------------

    def chat(
        self, messages: Sequence[Message], add_generation_prompt: bool = True, tools: Sequence[Any] = ()
    ) -> list[int]:
        """Token ids of a conversation under the checkpoint's chat template.

        The template alone writes control tokens: those that a message spells stay text.

        Raises:
            FieldError: when the tokenizer has no chat template, or the template cannot render the conversation.
        """
        (found,) = self.chats([Chat(messages, tools)], add_generation_prompt)
        if isinstance(found, FieldError):
            raise found
        return found

    def chats(self, chats: Sequence[Chat], add_generation_prompt: bool = True) -> list[list[int] | FieldError]:
        """:meth:`chat` of each conversation, in less time; an error stands in the place of the one that it is of.

        Raises:
            FieldError: when the tokenizer has no chat template.
        """
        rendered = self._rendered(chats, add_generation_prompt)
        encoded = iter(self._encode([r.pieces for r in rendered if not isinstance(r, FieldError)]))
        return [r if isinstance(r, FieldError) else self._checked(next(encoded), r.control) for r in rendered]

    def render(self, messages: Sequence[Message], tools: Sequence[Any] = ()) -> Rendered:
        """The first half of :meth:`chat`: what the chat template makes of a conversation, for :meth:`read`.

        Raises:
            FieldError: as :meth:`chat` does.
        """
        (found,) = self._rendered([Chat(messages, tools)], add_generation_prompt=True)
        if isinstance(found, FieldError):
            raise found
        return found

    def read(self, rendered: Rendered) -> list[int]:
        """The second half of :meth:`chat`: token ids.

        Raises:
            FieldError: when a text has become a control token.
        """
        found = self._checked(self._encode([rendered.pieces])[0], rendered.control)
        if isinstance(found, FieldError):
            raise found
        return found

    def chat_around(
        self, messages: Sequence[Message], texts: Sequence[str]
    ) -> tuple[list[int], list[list[int]], list[int]]:
        """Conversations that differ in how the user's last turn goes on, in parts.

        Args:
            messages: what all of them begin with; a last turn that is the user's goes on after an empty line.
            texts: how each of them goes on.

        Returns:
            Token ids of what all begin with, of each text, and of what the template writes behind it.

        Raises:
            FieldError: as :meth:`chat` does, and when the template does not render a text once, as it is.
        """
        said = "".join(str(message) for message in messages)
        mark = next(c for c in map(chr, range(0xF0000, 0xFFFFE)) if c not in said and c not in self._template)
        *others, last = messages
        if last.get("role") == "user":
            going_on = [*others, last | {"content": f"{last['content']}\n\n{mark}"}]
        else:
            going_on = [*messages, {"role": "user", "content": mark}]
        rendered = self.render(going_on)
        where = [i for i, piece in enumerate(rendered.pieces) if mark in piece]
        found = "".join(rendered.pieces).count(mark)
        allowed = "a chat template that renders the user's last turn once, as it is"
        require(found == 1, field="messages", value=f"rendered {found} times", allowed=allowed, fix="serve another one")
        start, end = rendered.pieces[where[0]].split(mark)
        before, after = [*rendered.pieces[: where[0]], start], [end, *rendered.pieces[where[0] + 1 :]]
        first, rest = self._encode([before, after])
        self.read(rendered)  # raises when a text has become a control token
        return first, self.literals(texts), rest

    def _rendered(self, chats: Sequence[Chat], add_generation_prompt: bool) -> list[Rendered | FieldError]:
        require(
            bool(self._template),
            field="messages",
            value="a conversation",
            allowed="raw text: this checkpoint has no chat template",
            fix="send text_input, or add chat_template.jinja to the checkpoint and build again",
        )
        masked = [self._masked(chat) for chat in chats]
        texts = iter(self._render([Chat(*m.value) for m in masked if isinstance(m, Masked)], add_generation_prompt))
        found: list[Rendered | FieldError] = []
        for m in masked:
            text = m if isinstance(m, FieldError) else next(texts)
            if isinstance(m, Masked) and isinstance(text, str):
                found.append(self._controls.unmask(text, m.back))
            elif isinstance(text, FieldError):
                found.append(text)
        return found

    @cached_property
    def answer_end(self) -> list[int]:
        """The tokens with which the chat template ends an answer; the last of them is the one that ends a turn.

        Raises:
            FieldError: when the template writes control tokens that the tokenizer does not have, or ends an answer
                without one.
        """
        asked: Message = {"role": "user", "content": "a"}
        chats = [Chat([asked, {"role": "assistant", "content": _STAND_IN}]), Chat([asked])]
        whole, start = (self._render([chat], prompt)[0] for chat, prompt in zip(chats, (False, True), strict=True))
        for text in (whole, start):
            if isinstance(text, FieldError):
                raise text
            unknown = [marker for marker in MARKER.findall(text) if marker not in self._controls.tokens]
            allowed = "a tokenizer that has each control token of its chat template as one token"
            require(
                not unknown,
                field="data.tokenizer",
                value=" ".join(unknown),
                allowed=allowed,
                fix="pass the model's own tokenizer",
            )
        after = str(whole).partition(_STAND_IN)[2]
        space = after[: len(after) - len(after.lstrip())]
        token = self._controls.starts(after.lstrip())
        allowed = "a tokenizer whose chat template ends an answer with a control token"
        require(
            token is not None,
            field="data.tokenizer",
            value=after,
            allowed=allowed,
            fix="pass the model's own tokenizer",
        )
        return self.encode(f"{space}{token}")

    def _masked(self, chat: Chat) -> Masked | FieldError:
        try:
            return self._controls.mask((chat.messages, chat.tools))
        except FieldError as error:
            return error

    def _render(self, chats: Sequence[Chat], add_generation_prompt: bool) -> list[str | FieldError]:
        plain = [chat for chat in chats if not _uses_tools(chat)]
        try:
            texts = iter(self._apply([chat.messages for chat in plain], None, add_generation_prompt) if plain else ())
        except Exception:  # which of them it was is found below
            texts = None
        found: list[str | FieldError] = []
        for chat in chats:
            try:
                if _uses_tools(chat):
                    self._check_tools(chat)
                elif texts is not None:
                    found.append(next(texts))
                    continue
                found += self._apply([chat.messages], chat.tools, add_generation_prompt)
            except FieldError as error:
                found.append(error)
            except Exception as error:  # a template is a program, and may raise anything
                said = str(error) or type(error).__name__
                allowed = "what the chat template renders"
                found.append(FieldError(field="messages", value=said, allowed=allowed, fix="correct the conversation"))
        return found

    def _apply(
        self, conversations: Sequence[Sequence[Message]], tools: Sequence[Any] | None, add_generation_prompt: bool
    ) -> list[str]:
        texts = self._inner.apply_chat_template(
            [list(messages) for messages in conversations],
            tools=list(tools) if tools else None,
            add_generation_prompt=add_generation_prompt,
            tokenize=False,
        )
        return list(texts)

    def _check_tools(self, chat: Chat) -> None:
        """Raise :class:`FieldError` when the template leaves out what the conversation has of tools."""
        numbers = iter(range(0xF0000, 0xFFFFE))
        wanted: dict[str, tuple[str, Any]] = {}

        def stand_in(field: str, value: Any) -> str:
            wanted[character := chr(next(numbers))] = field, value
            return character

        messages = []
        for i, message in enumerate(chat.messages):
            changed = dict(message)
            if message.get("role") == "tool":
                changed["content"] = stand_in(f"messages[{i}].content", message.get("content"))
            if message.get("tool_calls"):
                changed["tool_calls"] = [
                    call | {"function": call["function"] | {"name": stand_in(f"messages[{i}].tool_calls[{j}]", call)}}
                    for j, call in enumerate(message["tool_calls"])
                ]
            messages.append(changed)
        tools = [
            tool | {"function": tool["function"] | {"name": stand_in(f"tools[{i}]", tool)}}
            for i, tool in enumerate(chat.tools)
        ]
        (text,) = self._apply([messages], tools, add_generation_prompt=False)
        for character, (field, value) in wanted.items():
            allowed = "what the chat template renders: it leaves this out"
            require(
                character in text,
                field=field,
                value=value,
                allowed=allowed,
                fix="leave it out, or say it in a message's text",
            )

    # -- token ids ---------------------------------------------------------------------------------------------------

    def _encode(self, texts: Sequence[list[str]]) -> list[list[int]]:
        """Token ids of texts, each in pieces that are tokenized apart."""
        encoded = iter(self._rust.encode_batch_fast([p for pieces in texts for p in pieces], add_special_tokens=False))
        return [[i for _ in pieces for i in next(encoded).ids] for pieces in texts]

    def _checked(self, ids: list[int], control: Sequence[str]) -> list[int] | FieldError:
        """``ids``, when their control tokens are the template's: a normaliser may make one of a text that is none."""
        found = [self._names[i] for i in ids if i in self._names]
        if found == [token for token in control if token in self._counted]:
            return ids
        return FieldError(
            field="messages",
            value=found,
            allowed=f"no control tokens but the chat template's: {control}",
            fix="spell it apart",
        )


def _uses_tools(chat: Chat) -> bool:
    return bool(chat.tools) or any(m.get("role") == "tool" or m.get("tool_calls") for m in chat.messages)
