"""``diffgemma-train``, or `python -m nemo_diffgemma.training`."""

from nemo_diffgemma.entry import enter, leave
from nemo_diffgemma.extras import needs


def main() -> None:
    """Entry point of the console script."""
    enter()
    needs("train", "hydra", "torch", "transformers", "nemo", "nemo_automodel")
    from nemo_diffgemma.training.cli import main as run

    try:
        run()
    finally:
        leave()


if __name__ == "__main__":
    main()
