"""A tokenizer is loaded as AutoTokenizer loads it, and without it where that makes no difference."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from nemo_diffgemma.checkpoint import Checkpoint
from nemo_diffgemma.errors import FieldError
from nemo_diffgemma.tokenizer import Tokenizer

TEXTS = ("red chair", "größe 12, 日本", "<|turn>user\nred<turn|>", " \n\t🙂", "")


@pytest.mark.parametrize("named", ["TokenizersBackend", "PreTrainedTokenizerFast", "GemmaTokenizer", None])
def test_it_is_what_auto_tokenizer_makes(text_checkpoint: Path, tmp_path: Path, named: str | None) -> None:
    for path in text_checkpoint.iterdir():
        if "token" in path.name or path.suffix == ".jinja":
            shutil.copy(path, tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    config.pop("tokenizer_class")
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps(config | ({} if named is None else {"tokenizer_class": named}))
    )
    expected, found = AutoTokenizer.from_pretrained(str(tmp_path)), Tokenizer(tmp_path)
    assert type(found._inner) is type(expected)
    for text in TEXTS:
        ids = expected(text, add_special_tokens=False)["input_ids"]
        assert found.encode(text) == ids
        assert found.decode(ids) == expected.decode(ids, skip_special_tokens=True)
    assert found._inner.special_tokens_map == expected.special_tokens_map
    assert found._inner.chat_template == expected.chat_template


def test_a_process_that_only_tokenizes_imports_no_models(text_checkpoint: Path) -> None:
    script = (
        "import sys; from nemo_diffgemma.tokenizer import Tokenizer; Tokenizer(sys.argv[1])\n"
        "print([name for name in ('torch._dynamo', 'transformers.models.auto.auto_factory') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script, str(text_checkpoint)], capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr


@pytest.mark.parametrize("name", ["chat_template.jinja", "tokenizer_config.json", "special_tokens_map.json"])
def test_a_file_that_is_there_by_name_alone_is_not_passed_over(
    text_checkpoint: Path, tmp_path: Path, name: str
) -> None:
    shutil.copytree(text_checkpoint, tmp_path, dirs_exist_ok=True)
    (tmp_path / name).unlink(missing_ok=True)
    (tmp_path / name).symlink_to("../blobs/0123456789ab")
    with pytest.raises(FieldError, match=f"^tokenizer:{name}: '.*: a link to nothing'"):
        Tokenizer(tmp_path)
    with pytest.raises(FieldError, match=f"^checkpoint:{name}: '.*: a link to nothing'"):
        _ = Checkpoint(tmp_path).tokenizer_files
