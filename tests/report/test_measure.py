"""What a report measures, against brute force in NumPy; and whether it separates right maps from wrong ones."""

import numpy as np
import pytest
from helpers import unit

from mv2v_jax.report.measure import NUM_NEAREST, NUM_SHOWN
from mv2v_jax.report.regions import name_regions

CASES = ("right", "wrong")


def similarities(case, planted):
    """Cosines of the mapped held-out rows with all rows of Y."""
    mean_x, mean_y = (np.asarray(side.mean) for side in (case.map.source, case.map.target))
    mapped = unit(unit(planted.x[case.measured.rows] - mean_x) @ np.asarray(case.map.W))
    return mapped @ unit(planted.y - mean_y).T


@pytest.mark.parametrize("name", CASES)
def test_neighbours_are_those_of_brute_force(name, cases, planted):
    measured, expected = cases[name].measured, similarities(cases[name], planted)
    assert len(set(measured.rows.tolist())) == len(measured.rows) == 60
    order = np.argsort(-expected, axis=1)[:, :NUM_SHOWN]
    # Cosines that differ by rounding alone may change places.
    np.testing.assert_allclose(measured.cosine, np.take_along_axis(expected, order, axis=1), atol=2e-5)
    np.testing.assert_allclose(np.take_along_axis(expected, measured.nearest, axis=1), measured.cosine, atol=2e-5)


def test_searches_confirm_the_right_map_only(cases):
    right, wrong = (cases[name].measured for name in CASES)
    assert right.agreement.min() == 1
    assert right.confirmed > 0.9
    assert wrong.agreement.mean() < 0.15
    assert abs(wrong.confirmed) < 0.5
    assert right.chance == NUM_NEAREST / 800


def test_ranks_are_those_of_brute_force(cases, planted):
    case = cases["right"]
    mean_x, mean_y = (np.asarray(side.mean) for side in (case.map.source, case.map.target))
    mapped = unit(unit(planted.x_eval - mean_x) @ np.asarray(case.map.W))
    products = mapped @ unit(planted.y_eval - mean_y).T
    own = np.diag(products)
    assert np.abs(case.measured.ranks - 1 - (products > own[:, None]).sum(axis=1)).mean() < 0.05
    assert np.abs(case.measured.ranks_back - 1 - (products > own[None]).sum(axis=0)).mean() < 0.05
    assert (cases["wrong"].measured.ranks <= 1).mean() < 0.2


def test_held_out_rows_come_nearer_than_the_null_under_the_right_map_only(cases):
    gains = []
    for name in CASES:
        mapped, null, within = (values.mean() for values in cases[name].measured.nearness)
        gains.append((mapped - null) / (within - null))
    assert gains[0] > 0.8
    assert gains[1] < 0.3


@pytest.mark.parametrize("name", CASES)
def test_regions_hold_every_row_once(name, cases):
    regions = cases[name].measured.regions
    assert sorted(np.concatenate(regions.members).tolist()) == list(range(800))
    assert regions.share_y.sum() == pytest.approx(1)
    assert regions.share_x.sum() == pytest.approx(1)
    assert list(regions.share_y) == sorted(regions.share_y, reverse=True)
    assert name_regions(regions, None)[0] == "region 1"


def test_hubs_count_every_neighbour(cases):
    for counts in cases["right"].measured.hubs:
        assert counts.sum() == 60 * NUM_NEAREST
