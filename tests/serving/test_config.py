"""The committed config.pbtxt is what the description of the tensors renders."""

from __future__ import annotations

from pathlib import Path

import pytest

from nemo_diffgemma.errors import FieldError
from triton_repo.config import CONFIG_FILE, check, main, render, validate
from triton_repo.tensors import INPUTS, UNSUPPORTED


def test_the_committed_file_is_the_rendering(capsys: pytest.CaptureFixture[str]) -> None:
    assert CONFIG_FILE.read_text() == render()
    assert main(["--check"]) == 0
    assert capsys.readouterr().out == "config.pbtxt: 40 inputs, 9 outputs, as rendered\n"


def test_triton_reads_it_and_nothing_in_it_is_a_template() -> None:
    config = validate(render())
    assert "${" not in render()
    assert (config.name, config.backend, config.max_batch_size) == ("diffgemma", "python", 1)
    assert all(tensor.optional for tensor in config.input)
    assert len(config.input) == len(INPUTS) + len(UNSUPPORTED)


def test_a_difference_names_the_command_that_mends_it(tmp_path: Path) -> None:
    path = tmp_path / "config.pbtxt"
    with pytest.raises(FieldError, match=r"'no file' cannot be used; .*fix: python -m triton_repo.config --write"):
        check(path)
    path.write_text(render() + "\n")
    with pytest.raises(FieldError, match=r"'another text' cannot be used; .*fix: python -m triton_repo.config --write"):
        check(path)


def test_what_triton_would_refuse_is_refused() -> None:
    with pytest.raises(FieldError, match=r"config.pbtxt: .*nonsense.* allowed: Triton's ModelConfig"):
        validate("nonsense: 1")
    twice = 'input { name: "text_input" data_type: TYPE_STRING dims: [ 1 ] }\n'
    with pytest.raises(FieldError, match=r"config.pbtxt: \['text_input'\] cannot be used; allowed: each tensor once"):
        validate(render() + twice)
