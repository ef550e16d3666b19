"""A short slice of the fuzzing in `run.py`, a longer one behind the slow marker, and all failures it once found."""

from pathlib import Path

import hypothesis
import pytest
from fuzz.targets import TARGETS, check_file, make_inputs

CORPUS = sorted(path for path in (Path(__file__).parent / "corpus").iterdir() if path.suffix != ".md")


def fuzz(target, folder, num_inputs, seed=0):
    strategy, check = TARGETS[target]
    if target in ("commands", "metadata"):
        make_inputs(folder)

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=num_inputs, deadline=None, database=None, suppress_health_check=list(hypothesis.HealthCheck)
    )
    @hypothesis.given(strategy)
    def run(drawn):
        check(drawn, folder)

    run()


@pytest.mark.parametrize("path", CORPUS, ids=lambda path: path.name)
def test_a_file_that_once_failed(path, tmp_path):
    check_file((path.suffix, path.read_bytes()), tmp_path)


@pytest.mark.parametrize("target", TARGETS)
def test_a_few_inputs(target, tmp_path):
    fuzz(target, tmp_path, 40)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("target", TARGETS)
def test_many_inputs(target, seed, tmp_path):
    fuzz(target, tmp_path, 1_500, seed)
