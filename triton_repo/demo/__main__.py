"""``python -m triton_repo.demo``."""

import time

from nemo_diffgemma.entry import enter, leave
from nemo_diffgemma.quiet import quiet_start


def _main() -> None:
    enter()
    start = time.perf_counter()
    print("loading torch and transformers", flush=True)
    quiet_start()
    from triton_repo.demo.stages import main  # this takes seconds

    try:
        main(start)
    finally:
        leave()


if __name__ == "__main__":
    _main()
