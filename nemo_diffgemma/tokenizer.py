"""Text to token ids and back, with the checkpoint's own tokenizer and chat template."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from tokenizers import Regex, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as RustTokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from nemo_diffgemma.errors import require

# Gemma's turn markers; ids follow the order, pad = 0, eos = 1, bos = 2.
SPECIAL_TOKENS = ("<pad>", "<eos>", "<bos>", "<unk>", "<|turn>", "<turn|>")
END_OF_TURN = "<turn|>"
CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "<|turn>{{ 'model' if message['role'] == 'assistant' else message['role'] }}\n"
    "{{ message['content'] }}<turn|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|turn>model\n{% endif %}"
)
# Digits one by one, words without their spaces: a word that an answer takes over from its prompt is the same token in
# both, which a small model learns several times faster. Punctuation with the spaces around it: `": "` is one piece.
_PIECES = Regex(r"\d|\p{L}+|[^\s\p{L}\d]+(?: [^\s\p{L}\d]+)* ?|\s")

Message = dict[str, Any]


class Tokenizer:
    """A checkpoint's tokenizer: ``encode``, ``decode`` and ``chat``.

    Raises:
        FieldError: when the directory holds no tokenizer.
    """

    def __init__(self, directory: str | Path):
        require(
            (Path(directory) / "tokenizer.json").is_file(),
            "tokenizer",
            str(directory),
            "a directory with a tokenizer.json",
            "pass token ids instead of text, or add the tokenizer's files and build again",
        )
        self._inner: PreTrainedTokenizerFast = AutoTokenizer.from_pretrained(str(directory))

    @cached_property
    def stray_byte(self) -> list[int]:
        """The token of a byte that is no character of its own; of a tokenizer without byte tokens, any or none."""
        # In no vocabulary, so a tokenizer that can fall back to bytes spells it in them.
        return self.encode("\U0010ffff")[-1:]

    def encode(self, text: str) -> list[int]:
        """Token ids of raw text, as it stands: no template, no token added."""
        return list(self._inner(text, add_special_tokens=False)["input_ids"])

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Text of token ids, without any clean-up of spaces."""
        text = self._inner.decode(
            list(ids), skip_special_tokens=skip_special_tokens, clean_up_tokenization_spaces=False
        )
        return str(text)

    def chat(self, messages: Sequence[Message], add_generation_prompt: bool = True) -> list[int]:
        """Token ids of a conversation under the checkpoint's chat template.

        Raises:
            FieldError: when the tokenizer has no chat template.
        """
        require(
            bool(self._inner.chat_template),
            "messages",
            "a conversation",
            "raw text: this checkpoint has no chat template",
            "send text_input, or add chat_template.jinja to the checkpoint and build again",
        )
        text = self._inner.apply_chat_template(
            list(messages), add_generation_prompt=add_generation_prompt, tokenize=False
        )
        return self.encode(str(text))


def train_tokenizer(texts: Iterable[str], vocab_size: int, directory: str | Path) -> list[Path]:
    """Train a byte-level BPE on ``texts`` and write it, with Gemma's turn markers and a chat template.

    Returns:
        The written files.

    Raises:
        FieldError: when ``texts`` do not yield ``vocab_size`` tokens.
    """
    inner = RustTokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(_PIECES, "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator(texts, trainer)
    size = inner.get_vocab_size()
    require(size == vocab_size, "model.vocab_size", vocab_size, f"at most {size} for these texts", "lower it")
    fast = PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", eos_token="<eos>", bos_token="<bos>", unk_token="<unk>"
    )
    fast.chat_template = CHAT_TEMPLATE
    return [Path(path) for path in fast.save_pretrained(str(directory)) if Path(path).is_file()]
