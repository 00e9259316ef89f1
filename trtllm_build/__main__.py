"""``diffgemma-engine``, or `python -m trtllm_build`."""

from nemo_diffgemma.extras import needs


def main() -> None:
    """Entry point of the console script."""
    needs("engine", "hydra", "torch", "transformers", "safetensors")
    from trtllm_build.cli import main as run

    run()


if __name__ == "__main__":
    main()
