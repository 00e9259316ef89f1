"""``python -m triton_repo.demo``."""

import time

from nemo_diffgemma.quiet import quiet_start


def _main() -> None:
    start = time.perf_counter()
    print("loading torch and transformers", flush=True)
    quiet_start()
    try:
        from triton_repo.demo.stages import main  # this takes seconds
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    main(start)


if __name__ == "__main__":
    _main()
