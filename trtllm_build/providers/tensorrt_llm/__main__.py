"""``python -m trtllm_build.providers.tensorrt_llm``: build the library, check it on the GPU at hand."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from nemo_diffgemma.errors import FieldError
from trtllm_build.providers.tensorrt_llm.build import DEFAULT_OUT, build
from trtllm_build.providers.tensorrt_llm.check import check


def main() -> None:
    """Exits 2 on a user's mistake."""
    parser = argparse.ArgumentParser(prog="python -m trtllm_build.providers.tensorrt_llm", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    building = commands.add_parser("build", help="compile the library; needs no GPU")
    building.add_argument("--out", type=Path, default=DEFAULT_OUT, help="folder of all builds (%(default)s)")
    building.add_argument("--jobs", type=int, default=1, help="compilers at the same time (%(default)s)")
    checking = commands.add_parser("check", help="compare with the reference at the 26B model's size, and time it")
    checking.add_argument("library", type=Path, help="the .so that build wrote")
    checking.add_argument("--tokens", type=int, default=256, help="tokens of a batch (%(default)s)")
    options = parser.parse_args()
    try:
        if options.command == "build":
            build(options.out.expanduser().resolve(), options.jobs)
        else:
            check(options.library, options.tokens)
    except FieldError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
