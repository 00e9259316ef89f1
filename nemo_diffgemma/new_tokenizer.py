"""A tokenizer of one's own, for models that are trained from nothing: Gemma's turns around a byte-level BPE."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as RustTokenizer
from transformers import PreTrainedTokenizerFast

from nemo_diffgemma.chat import CALL, CALL_END, CHAT_TEMPLATE, QUOTE, RESULT
from nemo_diffgemma.errors import require

# Gemma's turn markers; ids follow the order, pad = 0, eos = 1, bos = 2.
SPECIAL_TOKENS = ("<pad>", "<eos>", "<bos>", "<unk>", "<|turn>", "<turn|>")
# What Gemma 4 writes tools with; of a tokenizer that is trained here the last ids.
TOOL_TOKENS = ("<|tool>", "<tool|>", CALL, CALL_END, RESULT, "<tool_response|>", QUOTE)
END_OF_TURN = "<turn|>"
# Years whole, other digits in twos, words without their spaces: a word that an answer takes over from its prompt is the
# same token in both, which a small model learns several times faster. Punctuation with the spaces around it: `": "` is
# one piece.
_PIECES = Regex(r"(?<!\d)20\d\d(?!\d)|\d{1,2}|\p{L}+|[^\s\p{L}\d]+(?: [^\s\p{L}\d]+)* ?|\s")


def train_tokenizer(texts: Iterable[str], vocab_size: int, directory: str | Path) -> list[Path]:
    """Train a byte-level BPE on ``texts`` and write it, with Gemma's markers of turns and tools and a chat template.

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
        vocab_size=vocab_size - len(TOOL_TOKENS),
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator(texts, trainer)
    inner.add_special_tokens([AddedToken(token, special=True) for token in TOOL_TOKENS])
    size = inner.get_vocab_size()
    require(
        size == vocab_size,
        field="model.vocab_size",
        value=vocab_size,
        allowed=f"at most {size} for these texts",
        fix="lower it",
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", eos_token="<eos>", bos_token="<bos>", unk_token="<unk>"
    )
    fast.chat_template = CHAT_TEMPLATE
    return [Path(path) for path in fast.save_pretrained(str(directory)) if Path(path).is_file()]
