"""``diffgemma-serve``, or `python -m triton_repo.launcher`."""

from nemo_diffgemma.entry import enter, leave
from nemo_diffgemma.extras import needs


def main() -> None:
    """Entry point of the console script."""
    enter()
    needs("serve", "hydra", "torch", "transformers", "tritonclient", "fastapi")
    from triton_repo.launcher.serve import main as run

    try:
        status = run()
    finally:
        leave()
    raise SystemExit(status)


if __name__ == "__main__":
    main()
