"""Lengths from directions: the regression is scikit-learn's ridge, and is honest about what it explains."""

import numpy as np
import pytest
from sklearn.linear_model import Ridge

from mv2v_jax.profiles import lengths as lengths_module
from mv2v_jax.profiles.lengths import fit_lengths, is_one_length, length_range, predict_lengths


def make_rows(n, d, noise, seed=0):
    rng = np.random.default_rng(seed)
    units = rng.normal(size=(n, d)).astype(np.float32) * np.linspace(2, 0.5, d, dtype=np.float32)
    units /= np.linalg.norm(units, axis=1, keepdims=True)
    lengths = np.exp(1 + units[:, 0] + noise * rng.normal(size=n))
    return units, lengths, np.arange(n) % 4 == 3


@pytest.mark.parametrize(("n", "d"), [(400, 12), (80, 90)])
def test_weights_are_those_of_a_ridge_regression(n, d):
    units, lengths, kept_out = make_rows(n, d, 0.1)
    weights, (offset, explained) = fit_lengths(units, lengths, kept_out)
    rows, logs = units[~kept_out].astype(np.float64), np.log(lengths[~kept_out])
    penalty = 3 * np.square(rows - rows.mean(axis=0)).sum() / d
    expected = Ridge(alpha=penalty).fit(rows, logs)
    np.testing.assert_allclose(weights, expected.coef_, rtol=1e-4, atol=1e-6)
    assert offset == pytest.approx(expected.intercept_, rel=1e-4)
    assert explained == pytest.approx(expected.score(units[kept_out], np.log(lengths[kept_out])), abs=1e-4)


def test_the_share_explained_is_that_of_rows_kept_out():
    assert fit_lengths(*make_rows(400, 12, 0.1))[1][1] > 0.3
    assert fit_lengths(*make_rows(400, 12, 20))[1][1] < 0.1


def test_few_rows_of_wide_spaces_are_enough(monkeypatch):
    units, lengths, kept_out = make_rows(400, 12, 0.1)
    monkeypatch.setattr(lengths_module, "_WIDE", 11)
    monkeypatch.setattr(lengths_module, "_WIDE_ROWS", 100)
    chosen = np.flatnonzero(~kept_out)[:100]
    kept = np.append(chosen, np.flatnonzero(kept_out))
    alone = fit_lengths(units[kept], lengths[kept], np.arange(len(kept)) >= 100)[0]
    np.testing.assert_allclose(fit_lengths(units, lengths, kept_out)[0], alone)


def test_predictions_stay_between_the_lengths_of_the_space():
    units, lengths, kept_out = make_rows(400, 12, 0.1)
    weights, fit = fit_lengths(units, lengths, kept_out)
    found = predict_lengths(units, length_range(lengths), weights, fit)
    assert np.corrcoef(found, lengths)[0, 1] > 0.9
    low, _, high = length_range(lengths)
    far = predict_lengths(np.eye(12, dtype=np.float32)[:1] * np.float32([[9], [-9]]), (low, 1, high), weights, fit)
    np.testing.assert_allclose(far, [high, low], rtol=1e-5)


def test_one_length():
    assert is_one_length(length_range(np.linspace(0.995, 1.005, 50)))
    assert not is_one_length(length_range(np.linspace(0.9, 1.1, 50)))
