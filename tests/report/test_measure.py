"""What a report measures, against brute force in NumPy; and whether it separates right maps from wrong ones."""

import numpy as np
import pytest
from helpers import unit

from mv2v_jax.report.measure import NUM_NEAREST, NUM_SHOWN
from mv2v_jax.report.regions import find_regions, name_regions

CASES = ("right", "wrong")


def similarities(case, planted):
    """Cosines of the mapped held-out rows with all rows of Y."""
    mean_x, mean_y = (np.asarray(side.mean) for side in (case.map.source, case.map.target))
    mapped = unit(unit(planted.x[case.measured.rows] - mean_x) @ np.asarray(case.map.W))
    return mapped @ unit(planted.y - mean_y).T


@pytest.mark.parametrize("name", CASES)
def test_neighbours_are_those_of_brute_force(name, cases, planted):
    measured, expected = cases[name].measured, similarities(cases[name], planted)
    assert len(set(measured.rows.tolist())) == len(measured.rows) == 85
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


def test_hubs_count_every_neighbour_of_as_many_rows_of_either_side(cases):
    for counts in cases["right"].measured.hubs:
        assert counts.sum() == 83 * NUM_NEAREST


def test_closeness_of_a_region_is_that_of_its_rows_of_either_side():
    """More rows of X are held out than of Y. Every row looks for others in the other space and in its own."""
    rng = np.random.default_rng(0)
    target = unit(rng.normal(size=(400, 3)))
    held_y, mapped = np.arange(80), unit(rng.normal(size=(130, 3)))
    of_x, of_y = (3, 130), (3, 80)
    values_x, values_y = rng.uniform(size=of_x), rng.uniform(size=of_y)
    seen = {"target": target, "present": np.ones(400, bool), "mapped": mapped, "held_y": held_y}
    # Across, under the null, and within the own space.
    seen |= {"forth": (values_x[0], values_x[1], values_y[2]), "back": (values_y[0], values_y[1], values_x[2])}
    found = find_regions(seen, None, [np.arange(1_000), np.arange(400)], np.arange(130))
    assert len(found.members) == 12
    for region, members in enumerate(found.members):
        rows_x, rows_y = found.region_x == region, np.isin(held_y, members)
        means = [np.concatenate([values_x[kind, rows_x], values_y[kind, rows_y]]).mean() for kind in range(3)]
        expected = (means[0] - means[1]) / max(means[2] - means[1], 0.02)
        np.testing.assert_allclose(found.closeness[region], expected if (rows_x.sum() + rows_y.sum()) >= 10 else np.nan)
