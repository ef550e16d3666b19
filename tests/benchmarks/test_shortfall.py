"""What the search loses and what settling loses, on rows whose true map is known."""

import jax
import numpy as np
import pytest
from scipy.stats import special_ortho_group

from benchmarks import shortfall
from benchmarks.common import Split
from mv2v_jax import Config
from mv2v_jax.alignment.fit import prepare
from mv2v_jax.data.inputs import check_inputs, pad_inputs

DIMS = 8
ROTATION = special_ortho_group.rvs(DIMS, random_state=0).astype(np.float32)


def rotated_rows(num_without_partner=0):
    rng = np.random.default_rng(0)
    centers = 3 * rng.normal(size=(6, DIMS))
    x, y_source, x_eval = (
        np.float32(centers[rng.integers(6, size=size)] + rng.normal(size=(size, DIMS))) for size in (120, 110, 50)
    )
    y_true = x @ ROTATION
    y_true[:num_without_partner] = 0
    return Split(x=x, y=y_source @ ROTATION, y_true=y_true, x_eval=x_eval, y_eval=x_eval @ ROTATION)


@pytest.mark.parametrize("num_without_partner", [0, 60])
def test_true_pairs_give_the_rotation(num_without_partner):
    split, config = rotated_rows(num_without_partner), Config()
    x, y, seeds = check_inputs(jax.random.key(0), split.x, split.y, config, None)
    prepared = prepare(*pad_inputs(x, y, seeds, config), config)
    found = shortfall.estimate_from_pairs(split, prepared)
    # Both spaces have their own means, so the map is nearly the rotation.
    turn = np.asarray(prepared.subspace.extend(found.as_map()))
    assert np.linalg.norm(turn - ROTATION, 2) < 0.1
    assert not found.is_map


@pytest.mark.slow
def test_settling_keeps_a_map_that_fits(tiny):
    scores = shortfall.measure(rotated_rows(), 0)
    assert scores["oracle"]["top1"] > 0.9
    assert scores["pairs"]["top1"] > 0.8
    assert scores["search"]["top1"] < scores["pairs"]["top1"], "few steps find no map, so the start must matter"


def test_a_folder_is_needed():
    with pytest.raises(SystemExit, match="--data"):
        shortfall.main([])
