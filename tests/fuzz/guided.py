"""Fuzz one target guided by coverage: ``python -m fuzz.guided files --seconds 600`` from the folder ``tests``.

Atheris chooses the bytes from which Hypothesis draws its inputs, and keeps those that reach new branches of mv2v_jax.
It needs the package atheris, for Linux. Bytes that fail are left in the folder of ``--keep``; the exit code is then not
zero. ``--corpus`` names a folder where bytes worth keeping are read and added.
"""

import argparse
import sys
import tempfile
from pathlib import Path


def main() -> None:
    """Fuzz until the time is over or something fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", choices=("files", "commands", "metadata", "arrays"))
    parser.add_argument("--seconds", type=int, default=600)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", type=Path, default=Path("fuzz_failures"))
    parser.add_argument("--corpus", type=Path)
    options = parser.parse_args()

    import atheris

    with atheris.instrument_imports(include=["mv2v_jax"]):
        from fuzz.targets import TARGETS, make_inputs
    import hypothesis

    strategy, check = TARGETS[options.target]
    options.keep.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp())
    if options.target in ("commands", "metadata"):
        make_inputs(folder)

    @hypothesis.settings(database=None, deadline=None, suppress_health_check=list(hypothesis.HealthCheck))
    @hypothesis.given(strategy)
    def fuzz(drawn):
        check(drawn, folder)

    limits = [f"-max_total_time={options.seconds}", f"-seed={options.seed}", f"-artifact_prefix={options.keep}/"]
    corpus = [str(options.corpus)] if options.corpus else []
    # The program ends in here, so the folder stays.
    atheris.Setup(
        [sys.argv[0], *limits, "-max_len=8192", "-len_control=0", "-rss_limit_mb=4096", *corpus],
        fuzz.hypothesis.fuzz_one_input,
    )
    atheris.Fuzz()


if __name__ == "__main__":
    main()
