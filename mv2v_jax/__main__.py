"""``python -m mv2v_jax`` and the script ``mv2v``; says what to install where a package is missing."""

import os
import sys


def main() -> None:
    """Run the command line."""
    # JAX calls SciPy's LAPACK, loaded at the first decomposition. Its threads go on spinning for a while after each one
    # and keep XLA's waiting: a fit on few cores takes a third longer. Someone's own choice stays.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    try:
        from mv2v_jax.cli.app import main as run
    except ModuleNotFoundError as error:
        if error.name not in ("click", "rich", "safetensors"):
            raise
        print(f'Error: the command line needs {error.name}: pip install "mv2v_jax[cli]"', file=sys.stderr)
        sys.exit(2)
    run()


if __name__ == "__main__":
    main()
