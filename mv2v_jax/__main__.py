"""``python -m mv2v_jax`` and the script ``mv2v``; says what to install where a package is missing."""

import sys


def main() -> None:
    """Run the command line."""
    try:
        from mv2v_jax.cli import main as run
    except ModuleNotFoundError as error:
        if error.name not in ("click", "rich", "safetensors"):
            raise
        print(f'Error: the command line needs {error.name}: pip install "mv2v_jax[cli]"', file=sys.stderr)
        sys.exit(2)
    run()


if __name__ == "__main__":
    main()
