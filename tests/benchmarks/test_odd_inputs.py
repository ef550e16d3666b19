"""Unusual inputs are what their names say, and verdicts are compared with the truth."""

import json

import numpy as np
import pytest

from benchmarks import odd_inputs

RNG = np.random.default_rng(0)
SOURCE, TARGET = (RNG.normal(size=(700, dims)).astype(np.float32) for dims in (12, 8))


def split_of(name):
    return odd_inputs.make_split(odd_inputs.KINDS[name], SOURCE, TARGET, 100)


def test_both_sides_hold_other_texts_and_the_last_rows_evaluate():
    split = split_of("usual")
    np.testing.assert_array_equal(split.x, SOURCE[:300])
    np.testing.assert_array_equal(split.y, TARGET[300:600])
    np.testing.assert_array_equal(split.y_true, TARGET[:300])
    np.testing.assert_array_equal(split.y_eval, TARGET[600:])


def test_rows_are_what_the_names_say():
    assert len(split_of("30-rows").x) == 30
    assert len(np.unique(split_of("50-distinct-rows").x, axis=0)) == 50
    wide = split_of("4096-dimensions")
    assert wide.x.shape[1] == wide.y_eval.shape[1] == 4_096
    # Cosines stay, but for the noise.
    np.testing.assert_allclose(wide.x[:9] @ wide.x[:9].T, SOURCE[:9] @ SOURCE[:9].T, rtol=0.05, atol=1)
    alone = split_of("private-axis")
    assert (alone.x.shape[1], alone.y.shape[1]) == (12, 9)
    offset = split_of("common-offset").x
    assert np.linalg.norm(offset.mean(0)) > 50 * np.linalg.norm(offset - offset.mean(0), axis=1).mean()
    assert set(np.unique(split_of("three-bits").y)) == set(range(8))
    assert not split_of("zero-columns").x[:, 12:].any()


@pytest.mark.parametrize(
    ("verdict", "truth", "expected"),
    [
        ("ALIGNED", "right", True),
        ("ALIGNED", "half", False),
        ("ALIGNED", "wrong", False),
        ("UNCERTAIN", "right", True),
        ("UNCERTAIN", "wrong", True),
        ("NOT_ALIGNED", "wrong", True),
        ("NOT_ALIGNED", "right", False),
    ],
)
def test_a_verdict_follows_the_truth_or_not(verdict, truth, expected):
    assert odd_inputs.follows(verdict, truth) is expected


@pytest.mark.slow
def test_the_table_and_the_file(tmp_path, tiny, capsys):
    arguments = ["--only", "60-rows", "--restarts", "1", "--json", str(tmp_path / "odd.json")]
    (fit,) = odd_inputs.main(arguments)
    assert (fit["rows"], fit["dims"]) == (60, (384, 256))
    # Sixty rows determine no map of 256 dimensions.
    assert (fit["truth"], fit["follows"]) == ("wrong", fit["verdict"] != "ALIGNED")
    assert "60-rows" in capsys.readouterr().out
    assert json.loads((tmp_path / "odd.json").read_text())["fits"][0]["input"] == "60-rows"
