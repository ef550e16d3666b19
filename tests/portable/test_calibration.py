"""Calibrated scores let mapped rows come in proportion to their share of an index."""

import numpy as np
import pytest

from mv2v_jax import InputError
from mv2v_jax.portable import ScoreCalibration, calibrate_scores
from mv2v_jax.similarity import similarities


@pytest.mark.parametrize("metric", ["cosine", "dot", "l2"])
def test_mapped_rows_come_in_proportion(metric):
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(100, 12))
    docs, queries = (centres[rng.integers(100, size=n)] + 0.3 * rng.normal(size=(n, 12)) for n in (4000, 600))
    # A map brings rows near their places only.
    mapped = docs + 0.6 * rng.normal(size=docs.shape)
    is_mapped = rng.random(4000) < 0.4
    index = np.where(is_mapped[:, None], mapped, docs)
    found = calibrate_scores(queries[:300], index[~is_mapped], index[is_mapped], metric=metric)
    scores = similarities(queries[300:], index, metric)
    shares = [is_mapped[np.argsort(-each, axis=1)[:, :10]].mean() for each in (scores, found.apply(scores, is_mapped))]
    assert abs(shares[1] - 0.4) < 0.15
    assert abs(shares[0] - 0.4) > 0.3


def test_equal_sides_need_no_calibration():
    rows = np.random.default_rng(1).normal(size=(500, 8))
    scale, offset = calibrate_scores(rows[:50], rows, rows)
    assert (scale, offset) == (pytest.approx(1, abs=0.01), pytest.approx(0, abs=0.01))


def test_apply_changes_mapped_scores_only():
    found = ScoreCalibration(scale=2.0, offset=0.5).apply([0.1, 0.2], [False, True])
    np.testing.assert_allclose(found, [0.1, 0.9])


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (((5, 4), (30, 4), (19, 4)), r"mapped must be at least 20 rows .* found \[19, 4\]"),
        (((5, 4), (30, 5), (30, 4)), r"native must be .* of the dimension of the queries, found \[30, 5\]"),
        (((0, 4), (30, 4), (30, 4)), r"queries must be at least 1 rows"),
    ],
)
def test_refuses_what_does_not_fit(shapes, message):
    with pytest.raises(InputError, match=message):
        calibrate_scores(*(np.ones(shape) for shape in shapes))
