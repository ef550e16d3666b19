"""The quality of whole fits stays within the bands of 20 seeds, on small data of several kinds."""

import numpy as np
import pytest

from benchmarks import bands

# Mean and standard deviation of top-1 and of FOSCTTM, from `python -m benchmarks.bands`.
BANDS = {
    "bundled": {"top1": (0.7143, 0.0047), "foscttm": (0.0031, 0.0002)},
    "bundled-back": {"top1": (0.8016, 0.0032), "foscttm": (0.0025, 0.0002)},
    "half-of-x": {"top1": (0.6616, 0.0062), "foscttm": (0.0044, 0.0002)},
    "long-one": {"top1": (0.7153, 0.0048), "foscttm": (0.0032, 0.0002)},
    "long-percent-both": {"top1": (0.7155, 0.0041), "foscttm": (0.0031, 0.0001)},
    "axis-0.05": {"top1": (0.7049, 0.0048), "foscttm": (0.0036, 0.0002)},
}
# A band is five deviations wide on both sides of the mean, and deviations are at least these.
LEAST = {"top1": 0.004, "foscttm": 0.0002}


def test_slices_differ_as_their_names_say():
    found = bands.slices()
    split, back = found["bundled"], found["bundled-back"]
    np.testing.assert_array_equal(split.x_eval, back.y_eval)
    assert 2 * len(found["half-of-x"].x) == len(split.x)
    lengths = {name: np.linalg.norm(found[name].x, axis=1) for name in ("bundled", "long-one", "long-percent-both")}
    longer = {name: int((values > 50 * lengths["bundled"]).sum()) for name, values in lengths.items()}
    assert longer == {"bundled": 0, "long-one": 1, "long-percent-both": round(0.01 * len(split.x))}
    variances = [rows.var(axis=0).sum() for rows in (split.x, found["axis-0.05"].x)]
    np.testing.assert_allclose(variances[0] / variances[1], 0.95, atol=0.005)


@pytest.mark.slow
@pytest.mark.parametrize("name", BANDS)
def test_no_fit_is_worse_than_its_band(name):
    """A better method leaves the bands as well, and must move them."""
    split = bands.slices()[name]
    for seed in range(2):
        scores = bands.fit_slice(split, seed)["scores"]
        for score, (mean, deviation) in BANDS[name].items():
            assert abs(scores[score] - mean) < 5 * max(deviation, LEAST[score]), (score, scores[score])
