"""Fuzz for as long as wanted: ``python -m fuzz.run --minutes 60`` from the folder ``tests``; prints counts and crashes.

Each target runs in a process of its own, which is started again after every batch, so that a crash of a library is
found as well. A failing file is left in the folder of ``--keep``, from where it belongs into ``corpus``.
"""

import argparse
import collections
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

_MAX_BATCH_SECONDS = 60


def work(target: str, seed: int, seconds: float, folder: Path) -> int:
    """Run one target on random inputs; returns their number, or raises what failed first."""
    import hypothesis
    from fuzz.targets import TARGETS, make_inputs

    strategy, check = TARGETS[target]
    if target in ("commands", "metadata"):
        make_inputs(folder)
    count, started = 0, time.monotonic()

    class Ended(KeyboardInterrupt):
        """Other exceptions Hypothesis takes for a failure."""

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=10**9,
        deadline=None,
        database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
        phases=[hypothesis.Phase.generate, hypothesis.Phase.shrink],
        print_blob=False,
    )
    @hypothesis.given(strategy)
    def fuzz(drawn):
        nonlocal count
        if time.monotonic() - started > seconds:
            raise Ended
        count += 1
        check(drawn, folder)

    try:
        fuzz()
    except Ended:
        pass
    finally:
        print(f"inputs {count}", flush=True)
    return count


def main() -> None:
    """Run all targets in turn; the exit code is 1 if anything failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, default=Path("fuzz_failures"))
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(options.worker, options.seed, options.seconds, options.folder)
        return
    from fuzz.targets import TARGETS

    seconds = min(_MAX_BATCH_SECONDS, 60 * options.minutes / len(TARGETS))
    inputs, failures = collections.Counter(), collections.Counter()
    end, seed = time.monotonic() + 60 * options.minutes, options.seed
    while time.monotonic() < end:
        for target in TARGETS:
            with tempfile.TemporaryDirectory() as folder:
                command = [sys.executable, "-m", "fuzz.run", "--worker", target, "--seconds", str(seconds)]
                done = subprocess.run(
                    [*command, "--seed", str(seed), "--folder", folder], capture_output=True, text=True
                )
                inputs[target] += sum(int(line.split()[1]) for line in done.stdout.splitlines() if "inputs " in line)
                if done.returncode:
                    _keep(options.keep, target, seed, Path(folder), done, failures)
            seed += 1
        print(dict(inputs), "failures:", dict(failures), flush=True)
    sys.exit(bool(failures))


def _keep(keep: Path, target: str, seed: int, folder: Path, done, failures: collections.Counter) -> None:
    lines = [line.strip(" |+") for line in done.stderr.splitlines() if "Error" in line]
    last = lines[-1][:200] if lines else f"exit code {done.returncode}"
    first_time = not any(name.startswith(f"{target}: {last[:60]}") for name in failures)
    failures[f"{target}: {last}"] += 1
    if first_time:
        # CI keeps no files.
        print(done.stderr[-3_000:], file=sys.stderr, flush=True)
        try:
            place = keep / f"{target}-{seed}"
            place.mkdir(parents=True, exist_ok=True)
            (place / "error.txt").write_text(done.stderr)
            for file in folder.glob("input*"):
                shutil.copy(file, place)
        except OSError:
            traceback.print_exc()


if __name__ == "__main__":
    main()
