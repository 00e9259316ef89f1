"""The second turn of a 4k-token conversation: what is encoded, how soon it answers, and that it answers the same."""

from __future__ import annotations

import argparse
from typing import Any

import torch

from benchmarks.common import built_engine, random_checkpoint, run, show
from benchmarks.long_prompt import shapes
from trtllm_build import Engine, load_engine
from trtllm_build.runtime.engine import Generation

TURN = 4096
SETTINGS: dict[str, Any] = {"max_denoising_steps": 8, "ignore_eos": True, "seed": 1}


def main() -> None:
    """Entry point."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    bundle = built_engine(random_checkpoint("long", shapes()), "long/fp32")
    kept, fresh = load_engine(bundle), load_engine(bundle)
    g = torch.Generator().manual_seed(0)
    first = torch.randint(8192, (TURN,), generator=g).tolist()
    said = kept.generate([first], max_tokens=512, **SETTINGS)[0]
    second = [*first, *said.token_ids, *torch.randint(8192, (40,), generator=g).tolist()]
    again = ask(kept, second)
    scratch = ask(fresh, second)
    rows = [row("first turn", said), row("second turn, cache kept", again), row("second turn, from scratch", scratch)]
    show(
        "conversation",
        f"a turn of {len(second) - len(first)} new tokens after {TURN}",
        rows,
        same_answer=again.token_ids == scratch.token_ids,
        new_tokens=len(second) - len(first),
    )
    kept.close()
    fresh.close()


def ask(engine: Engine, prompt: list[int]) -> Generation:
    """One canvas of answer."""
    (result,) = engine.generate([prompt], max_tokens=256, stream=False, **SETTINGS)
    return result


def row(what: str, result: Generation) -> dict[str, Any]:
    """What a turn took."""
    s = result.stats
    assert s.first_block_seconds is not None
    return {
        "what": what,
        "prompt_tokens": s.prompt_tokens,
        "reused_tokens": s.reused_tokens,
        "encoded_tokens": s.encoded_tokens,
        "first_block_ms": 1000 * s.first_block_seconds,
    }


if __name__ == "__main__":
    run(main)
