"""Which caches are reused, kept, dropped and evicted."""

from __future__ import annotations

import pytest

from tests.runtime.scheduler_world import World, stem
from trtllm_build.runtime.scheduler import Encode


def test_a_conversation_goes_on_from_its_cache() -> None:
    world = World(chunk=8, canvas=6)
    prompt, answer = stem(0, 0, 10), stem(1, 0, 6)
    first = world.run_alone(prompt, canvases=2, commits=answer)
    second = world.submit((*prompt, *answer, 7, 8))
    plan = world.step()
    assert (plan.admitted[0].slot, plan.admitted[0].reused) == (world.slot_of(first), 16)
    assert plan.encode == (Encode(second, plan.admitted[0].slot, 16, (7, 8)),)


def test_a_prompt_that_is_wholly_in_the_cache_denoises_at_once() -> None:
    world = World(chunk=8)
    first = world.run_alone(stem(0, 0, 10))
    second = world.submit(stem(0, 0, 10))
    plan = world.step()
    assert plan.admitted[0].reused == 10
    assert plan.encode == ()
    assert plan.denoise == ((second, world.slot_of(first)),)


@pytest.mark.parametrize(("length", "reused"), [(7, 0), (8, 8)])
def test_nothing_shorter_than_a_chunk_is_reused(length: int, reused: int) -> None:
    world = World(chunk=8)
    world.run_alone(stem(0, 0, length))
    world.submit(stem(0, 0, 20))
    assert world.step().admitted[0].reused == reused


def test_part_of_a_cache_is_not_reused() -> None:
    world = World(chunk=8)
    world.run_alone(stem(0, 0, 20))
    world.submit(stem(0, 0, 19))
    assert world.step().admitted[0].reused == 0


@pytest.mark.parametrize(("first", "second", "reused"), [("a", "a", 10), ("a", "b", 0), ("", "a", 0), ("a", "", 0)])
def test_a_cache_is_reused_only_under_its_own_salt(first: str, second: str, reused: int) -> None:
    world = World(chunk=8)
    world.submit(stem(0, 0, 10), salt=first)
    world.drain()
    world.submit(stem(0, 0, 20), salt=second)
    assert world.step().admitted[0].reused == reused


def test_a_longer_cache_of_another_salt_does_not_hide_a_shorter_of_the_same() -> None:
    world = World(slots=4, chunk=8)
    mine, other = world.submit(stem(0, 0, 9), salt="a", steps=40), world.submit(stem(0, 0, 12), salt="b", steps=40)
    world.drain()
    world.submit(stem(0, 0, 20), salt="a")
    (admission,) = world.step().admitted
    assert (admission.slot, admission.reused) == (world.slot_of(mine), 9)
    assert admission.slot != world.slot_of(other)


@pytest.mark.parametrize("lengths", [(9, 12, 10), (12, 10, 9), (9, 10, 12)])
def test_the_longest_prefix_wins(lengths: tuple[int, ...]) -> None:
    world = World(slots=4, chunk=8)
    keys = [world.submit(stem(0, 0, n), steps=40) for n in lengths]  # at the same time, so that none reuses another
    world.drain()
    world.submit(stem(0, 0, 20))
    plan = world.step()
    assert plan.admitted[0].reused == 12
    assert plan.admitted[0].slot == world.slot_of(keys[lengths.index(12)])


def test_a_match_is_taken_before_an_empty_slot_and_an_empty_slot_before_a_kept_one() -> None:
    world = World(slots=3, chunk=8)
    first = world.run_alone(stem(0, 0, 8))
    other, same = world.submit(stem(1, 0, 8)), world.submit(stem(0, 0, 9))
    plan = world.step()
    slots = {a.key: (a.slot, a.reused) for a in plan.admitted}
    assert slots[other][0] != world.slot_of(first)
    assert slots[same] == (world.slot_of(first), 8)
    assert plan.evicted == ()


def test_without_an_empty_slot_the_least_recently_finished_is_dropped() -> None:
    world = World(slots=3)
    slow, quick, middle = (world.submit([i], steps=n) for i, n in enumerate((9, 1, 5)))
    world.drain()
    for expected in (quick, middle, slow):
        key = world.submit([9], steps=50)
        plan = world.step()
        assert (plan.admitted[0].slot, plan.admitted[0].reused) == (world.slot_of(expected), 0)
        assert world.slot_of(key) == world.slot_of(expected)
        assert plan.evicted == ()  # the admission itself drops it


def test_caches_are_evicted_for_pages_least_recently_finished_first() -> None:
    world = World(slots=4, pages=12, page=4, chunk=8, canvas=4)
    slow, quick, middle = (world.submit(stem(i, 0, 12), steps=n) for i, n in enumerate((30, 1, 15)))  # 4 pages each
    world.drain()
    assert world.scheduler.free_pages == 0
    world.submit([9] * 20)  # 6 pages: two of the caches go
    plan = world.step()
    assert plan.evicted == (world.slot_of(quick), world.slot_of(middle))
    assert world.scheduler.free_pages == 2
    world.drain()
    world.submit(stem(0, 0, 12))
    assert world.step().admitted[0].slot == world.slot_of(slow)


def test_the_reused_cache_is_not_evicted_for_its_own_job() -> None:
    world = World(slots=2, pages=12, page=4, chunk=8, canvas=4)
    old = world.run_alone(stem(0, 0, 20))  # 6 pages, the first to be evicted
    new = world.run_alone(stem(1, 0, 20))  # 6 pages
    world.submit(stem(0, 0, 36))  # 10 pages: its own 6 and 4 of the other's
    plan = world.step()
    assert (plan.admitted[0].slot, plan.admitted[0].reused) == (world.slot_of(old), 20)
    assert plan.evicted == (world.slot_of(new),)
    assert world.scheduler.free_pages == 2


def test_what_is_not_admitted_evicts_nothing() -> None:
    world = World(slots=3, pages=12, page=4, chunk=8, canvas=4)
    world.run_alone(stem(0, 0, 12))  # 4 pages kept
    world.submit(stem(1, 0, 12), steps=50)  # 4 running
    world.step()
    world.submit([9] * 32)  # 9 do not fit
    plan = world.step()
    assert plan.admitted == ()
    assert plan.evicted == ()
    assert list(world.kept.values()) == [list(stem(0, 0, 12))]
