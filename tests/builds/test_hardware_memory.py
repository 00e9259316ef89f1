"""A build in a container counts on what its limit leaves, not on the machine's memory."""

from __future__ import annotations

import os
from pathlib import Path

from trtllm_build.hardware import all_memory, free_memory

MACHINE = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def test_without_a_limit_it_is_the_machine_s(tmp_path: Path) -> None:
    assert 0 < free_memory(tmp_path) < MACHINE
    (tmp_path / "memory.max").write_text("max\n")
    assert 0 < free_memory(tmp_path) < MACHINE


def test_a_limit_counts_without_the_file_cache(tmp_path: Path) -> None:
    (tmp_path / "memory.max").write_text("100000000\n")
    (tmp_path / "memory.stat").write_text("anon 30000000\nfile 60000000\n")
    assert free_memory(tmp_path) == 70_000_000


def test_so_does_one_of_version_1(tmp_path: Path) -> None:
    (tmp_path / "memory").mkdir()
    (tmp_path / "memory" / "memory.limit_in_bytes").write_text("50000000\n")
    (tmp_path / "memory" / "memory.stat").write_text("cache 1000\nrss 60000000\n")
    assert free_memory(tmp_path) == 0


def test_a_limit_above_the_machine_s_memory_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / "memory.max").write_text(str(2**62))
    (tmp_path / "memory.stat").write_text("anon 0\n")
    assert free_memory(tmp_path) < MACHINE


def test_all_of_it_is_the_machine_s_or_the_limit(tmp_path: Path) -> None:
    assert all_memory(tmp_path) == MACHINE
    (tmp_path / "memory.max").write_text("max\n")
    assert all_memory(tmp_path) == MACHINE
    (tmp_path / "memory.max").write_text("50000000\n")
    assert all_memory(tmp_path) == 50_000_000
