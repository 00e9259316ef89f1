"""``diffgemma-serve``, or `python -m triton_repo.launcher`."""

from nemo_diffgemma.extras import needs


def main() -> None:
    """Entry point of the console script."""
    needs("serve", "hydra", "torch", "transformers", "tritonclient", "fastapi")
    from triton_repo.launcher.serve import main as run

    raise SystemExit(run())


if __name__ == "__main__":
    main()
