"""``python -m mv2v_jax`` and the script ``mv2v``; names the extra to install if a package is missing."""

import importlib.util
import os
import sys

from mv2v_jax.interrupts import end_interrupted, ending_at_interrupts


def main() -> None:
    """Run the command line."""
    # JAX calls SciPy's LAPACK, loaded at the first decomposition. Its threads keep spinning for a while after each call
    # and make XLA's threads wait: a fit on few cores takes a third longer. A value that the user set stays.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    with ending_at_interrupts():
        for package in ("click", "rich"):
            if importlib.util.find_spec(package) is None:
                print(
                    f'Error: the command line needs the package {package}, found none; do pip install "mv2v_jax[cli]"',
                    file=sys.stderr,
                )
                sys.exit(2)
        from mv2v_jax.cli import main as run
    try:
        run()
    except KeyboardInterrupt:
        end_interrupted()


if __name__ == "__main__":
    main()
