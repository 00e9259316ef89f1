"""How prompts and commits are cut into pieces."""

from __future__ import annotations

from tests.runtime.scheduler_world import World, stem


def test_what_a_request_is_cut_into_depends_on_nothing_else() -> None:
    def pieces(others: int) -> list[tuple[int, int]]:
        world = World(slots=8, pages=1000, chunk=8, canvas=6)
        for i in range(others):
            world.submit(stem(i + 1, 0, 3 + 5 * i), canvases=3, steps=2)
        key = world.submit(stem(0, 0, 29), canvases=3)
        world.drain()
        return world.requests[key].pieces

    assert pieces(0) == pieces(3) == pieces(7) == [(0, 8), (8, 16), (16, 24), (24, 29), (29, 35), (35, 41)]


def test_a_rest_after_reuse_is_cut_at_multiples_of_the_chunk() -> None:
    world = World(chunk=8)
    world.run_alone(stem(0, 0, 11))
    key = world.run_alone(stem(0, 0, 30))
    assert world.requests[key].pieces == [(11, 16), (16, 24), (24, 30)]


def test_a_canvas_longer_than_a_chunk_is_cut_too() -> None:
    world = World(chunk=8, canvas=11)
    key = world.run_alone(stem(0, 0, 3), canvases=2)
    assert world.requests[key].pieces == [(0, 3), (3, 8), (8, 14)]


def test_commits_go_before_prompts_and_do_not_hold_them_up() -> None:
    world = World(chunk=8, canvas=5)
    world.run_alone(stem(1, 0, 8))
    long, again = world.submit(stem(0, 0, 24)), world.submit(stem(1, 0, 8), canvases=2)
    plan = world.step()
    assert [e.key for e in plan.encode] == [long]
    assert [key for key, _ in plan.denoise] == [again]
    assert [(e.key, len(e.tokens)) for e in world.step().encode] == [(again, 5), (long, 8)]
    assert [(e.key, e.start) for e in world.step().encode] == [(long, 16)]


def test_pieces_share_the_budget_and_none_passes_one_that_does_not_fit() -> None:
    world = World(slots=5, chunk=8)
    sizes = (2, 6, 1, 9, 1)
    keys = [world.submit(stem(i, 0, n)) for i, n in enumerate(sizes)]
    pieces = [[(keys.index(e.key), len(e.tokens)) for e in world.step().encode] for _ in range(4)]
    assert pieces == [[(0, 2), (1, 6)], [(2, 1)], [(3, 8)], [(3, 1), (4, 1)]]


def test_a_long_prompt_does_not_stop_running_canvases() -> None:
    world = World(slots=2, chunk=8)
    running = world.submit([1], steps=20)
    world.step()
    world.submit(stem(0, 0, 80))
    for _ in range(10):
        plan = world.step()
        assert [len(e.tokens) for e in plan.encode] == [8]
        assert [key for key, _ in plan.denoise] == [running]
