"""``python -m triton_repo.demo``."""

import time


def _main() -> None:
    start = time.perf_counter()
    print("loading torch and transformers", flush=True)
    from triton_repo.demo.stages import main  # this takes seconds

    main(start)


if __name__ == "__main__":
    _main()
