"""Entries of the served model are small processes: the engine, and torch with it, is in one of them only."""

from __future__ import annotations

import subprocess
import sys

import pytest

from triton_repo.config import REPOSITORY
from triton_repo.tensors import TOKEN_MODEL, UNARY_MODEL


@pytest.mark.parametrize("model", [UNARY_MODEL, TOKEN_MODEL])
def test_an_entry_does_not_load_torch(model: str) -> None:
    code = f"""
import runpy, sys, types
sys.modules["triton_python_backend_utils"] = types.ModuleType("triton_python_backend_utils")
runpy.run_path({str(REPOSITORY / model / "1" / "model.py")!r})
print(*(name for name in ("torch", "transformers", "trtllm_build") if name in sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
