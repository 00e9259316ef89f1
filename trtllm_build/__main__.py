"""``diffgemma-engine``, or `python -m trtllm_build`."""

from nemo_diffgemma.entry import enter, leave
from nemo_diffgemma.extras import needs


def main() -> None:
    """Entry point of the console script."""
    enter()
    needs("engine", "hydra", "torch", "transformers", "safetensors")
    from trtllm_build.cli import main as run

    try:
        run()
    finally:
        leave()


if __name__ == "__main__":
    main()
