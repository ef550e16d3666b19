"""A small cloud, measured under its right map and under a wrong one; no search is run for it."""

from typing import Any, NamedTuple

import numpy as np
import pytest
from helpers import make_map, planted_clouds, semi_orthogonal, small_config

from mv2v_jax.alignment.score import SCALES, Evidence
from mv2v_jax.report.measure import Measured, measure
from mv2v_jax.report.searches import Searches

RIGHT, WRONG = "right", "wrong"


class Case(NamedTuple):
    """One map with what was measured."""

    map: Any
    searches: Searches
    measured: Measured


def make_searches(maps, closeness=0.5, *, agreement=1.0, are_new=True) -> Searches:
    """Searches that found these maps, with evidence of one closeness at every scale."""
    count = len(maps)
    values = {name: np.full(count, 0.9, np.float32) for name in ("cross", "within", "local_structure", "symmetry")}
    values |= {name: np.full(count, 0.9, np.float32) for name in ("local_closeness", "distinct", "score")}
    values |= {name: np.zeros((count, len(SCALES)), np.float32) for name in ("null", "null_deviation")}
    evidence = Evidence(
        **values,
        cross_each=np.full((count, 2), 0.9, np.float32),
        closeness=np.full((count, len(SCALES)), closeness, np.float32),
        num_rows=np.full(count, 90, np.int32),
    )
    return Searches(
        evidence=evidence,
        maps=np.stack(maps).astype(np.float32),
        agreement=np.where(np.eye(count, dtype=bool), 1.0, agreement),
        chosen=0,
        are_independent=np.ones(count, bool),
        are_new=are_new,
    )


@pytest.fixture(scope="session")
def planted():
    return planted_clouds(10, 8)


@pytest.fixture(scope="session")
def config():
    # 85 rows of X are held out, and 83 of Y: a tenth of its padded rows.
    return small_config(held_out_rows=85, search_dims=0)


@pytest.fixture(scope="session")
def cases(planted, config):
    """The right map, which searches confirm, and a wrong one among searches that all find something else."""
    rng = np.random.default_rng(0)
    means = planted.x.mean(axis=0), planted.y.mean(axis=0)
    others = [semi_orthogonal(rng, 10, 8) for _ in range(4)]
    pairs = planted.x_eval, planted.y_eval
    made = {}
    for name, W, maps in ((RIGHT, planted.W, [planted.W] * 3), (WRONG, others[0], others[1:])):
        linear_map, searches = make_map(W, *means), make_searches(maps, agreement=1.0 if name == RIGHT else 0.0)
        made[name] = Case(linear_map, searches, measure(linear_map, planted.x, planted.y, config, searches, pairs))
    return made
