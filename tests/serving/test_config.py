"""The committed model configs are what the description of the tensors renders, and what the models read."""

from __future__ import annotations

import runpy
import shutil
import sys
import types
from pathlib import Path

import pytest

from nemo_diffgemma.errors import FieldError
from triton_repo import config
from triton_repo.config import check, check_engine, files, for_engine, main, render, validate
from triton_repo.tensors import (
    ALL_INPUTS,
    ALL_OUTPUTS,
    DECIDE_INPUTS,
    DECIDE_MODEL,
    INPUTS,
    MODEL,
    TOKEN_INPUTS,
    TOKEN_MODEL,
    TOKEN_OUTPUTS,
    UNARY_MODEL,
    UNSUPPORTED,
)
from trtllm_build.bundle import Bundle

GPUS = ("cpu", "dgx_spark", "h100", "h200", "rtx5090")


def test_the_committed_files_are_the_renderings(capsys: pytest.CaptureFixture[str]) -> None:
    assert {path.stem for path in files() if path.parent.name == "configs"} == set(GPUS)
    assert all(path.read_text() == text for path, text in files().items())
    assert main(["--check"]) == 0
    said = f"{4 + len(GPUS)} model configs: {len(ALL_INPUTS)} inputs, {len(ALL_OUTPUTS)} outputs, as rendered\n"
    assert capsys.readouterr().out == said


def test_triton_reads_them_and_nothing_in_them_is_a_template() -> None:
    for path, text in files().items():
        read = validate(text)
        model = path.relative_to(config.REPOSITORY).parts[0]
        assert "${" not in text
        assert (read.name, read.backend, read.max_batch_size) == (model, "python", 1)
        assert all(tensor.optional for tensor in read.input)
        assert read.model_transaction_policy.decoupled == (model not in (UNARY_MODEL, DECIDE_MODEL))
    assert len(validate(render()).input) == len(INPUTS) + len(UNSUPPORTED)


@pytest.mark.parametrize("model", [UNARY_MODEL, DECIDE_MODEL, TOKEN_MODEL])
def test_an_entry_asks_for_what_the_model_has(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", types.ModuleType("triton_python_backend_utils"))
    for name in ("triton_repo.python_backend.forward", "triton_repo.python_backend.status"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    entry = runpy.run_path(str(config.REPOSITORY / model / "1" / "model.py"))["TritonPythonModel"].entry
    assert set(entry.outputs) <= set(ALL_OUTPUTS)
    read = validate(render(model))
    if model == UNARY_MODEL:
        assert {tensor.name for tensor in read.input} == set(ALL_INPUTS)
        assert {tensor.name for tensor in read.output} == set(entry.outputs)
    elif model == DECIDE_MODEL:
        assert {tensor.name for tensor in read.input} == set(DECIDE_INPUTS) <= set(ALL_INPUTS)
        assert {tensor.name for tensor in read.output} == set(entry.outputs)
    else:
        assert {tensor.name for tensor in read.input} == set(TOKEN_INPUTS)
        assert {tensor.name for tensor in read.output} == {t.name for t in TOKEN_OUTPUTS}
        assert {*entry.outputs, "sequence_length"} == {t.name for t in TOKEN_OUTPUTS}
        assert set(filter(None, TOKEN_INPUTS.values())) <= set(ALL_INPUTS)


def test_a_difference_names_the_command_that_mends_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = shutil.copytree(config.REPOSITORY, tmp_path / "models", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(config, "REPOSITORY", copy)
    check()
    path = copy / MODEL / "configs" / "h100.pbtxt"
    path.unlink()
    with pytest.raises(FieldError, match=r"'no file' cannot be used; .*fix: python -m triton_repo.config --write"):
        check()
    path.write_text(render())
    with pytest.raises(FieldError, match=r"'another text' cannot be used; .*fix: python -m triton_repo.config --write"):
        check()
    assert main(["--write"]) == 0
    (copy / MODEL / "configs" / "h101.pbtxt").write_text(render())
    with pytest.raises(FieldError, match=r"h101.pbtxt.* cannot be used; allowed: only configs that are rendered"):
        check()


def test_an_engines_config_says_what_it_admits(demo_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--engine", str(demo_bundle)]) == 0
    read = validate(capsys.readouterr().out)
    found = {name: value.string_value for name, value in read.parameters.items()}
    assert found == {
        "gpu": "cpu",
        "precision": "fp32",
        "backend": "torch_cpu",
        "slots": "8",
        "context": "256",
        "canvas": "16",
        "queue": "256",
    }


def test_a_config_of_another_gpu_loads_no_engine(demo_bundle: Path) -> None:
    manifest = Bundle.open(demo_bundle).manifest
    check_engine({}, manifest)
    for gpu in ("cpu", "h100"):
        parameters = {"gpu": {"string_value": gpu}}
        if gpu == "cpu":
            check_engine(parameters, manifest)
            continue
        with pytest.raises(FieldError) as error:
            check_engine(parameters, manifest)
        assert str(error.value) == (
            "engine:gpu: 'cpu' cannot be used; allowed: h100, as this config says; "
            "fix: pass --model-config-name=cpu, or build with `make engine GPU=h100`"
        )
    assert for_engine(manifest)["gpu"] == "cpu"


def test_what_triton_would_refuse_is_refused() -> None:
    with pytest.raises(FieldError, match=r"config.pbtxt: .*nonsense.* allowed: Triton's ModelConfig"):
        validate("nonsense: 1")
    twice = 'input { name: "text_input" data_type: TYPE_STRING dims: [ 1 ] }\n'
    with pytest.raises(FieldError, match=r"config.pbtxt: \['text_input'\] cannot be used; allowed: each tensor once"):
        validate(render() + twice)
