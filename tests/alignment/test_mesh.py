"""Results over a mesh of eight CPU devices equal those of one device: stages that split their work, and whole fits."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import make_estimate, make_spaces, planted_clouds, shortened, small_config, unit

from mv2v_jax import InputError, align_restarts, make_mesh
from mv2v_jax.alignment.anchors import match_anchor_sets
from mv2v_jax.alignment.api import restart_keys
from mv2v_jax.alignment.fit import prepare, search_once
from mv2v_jax.alignment.polish import polish
from mv2v_jax.alignment.refine_annealed import refine_annealed, refine_by_region, refine_whole
from mv2v_jax.alignment.refine_published import refine_clusters
from mv2v_jax.alignment.run import SEARCHING, Inline
from mv2v_jax.alignment.score import gather_evidence
from mv2v_jax.alignment.space import fit_space
from mv2v_jax.data.padding import pad_rows
from mv2v_jax.ops.csls import match_csls
from mv2v_jax.ops.kmeans import lloyd
from mv2v_jax.ops.knn import nearness, neighbor_means, top_neighbors
from mv2v_jax.ops.sharding import BY_ROWS, EVERYWHERE, RESTART, ROW, all_gather, over_mesh, psum, shard

KEY = jax.random.key(0)
# Numbers of rows for which no number of devices divides the groups, blocks and parts.
CONFIG = small_config(
    annealing_steps=2, annealing_rows=1_100, settling_whole_rows=1_500, published_num_clusters=60, anchors_rows=200
)
rng = np.random.default_rng(0)
X, Y = unit(rng.normal(size=(1_230, 8))), unit(rng.normal(size=(1_101, 8)))
W = np.linalg.qr(rng.normal(size=(8, 8)))[0]

STAGES = {
    "top_neighbors": lambda x, y, W: top_neighbors(x, y, num_neighbors=7),
    "neighbor_means": lambda x, y, W: neighbor_means(x, y, y, num_neighbors=7),
    "nearness": lambda x, y, W: nearness(x, y, num_groups=10),
    "match_csls": lambda x, y, W: match_csls(x, y, num_neighbors=2),
    "match_csls_few": lambda x, y, W: match_csls(x[:90], y[:80], num_neighbors=2),
    "lloyd": lambda x, y, W: lloyd(x, y[:13], num_steps=4, spread=True),
    "anchors": lambda x, y, W: match_anchor_sets(KEY, make_spaces(x, y), config=CONFIG.anchors),
    "refine_clusters": lambda x, y, W: refine_clusters(
        KEY, make_spaces(x, y), make_estimate(W, is_map=True), config=CONFIG
    ),
    "refine_annealed": lambda x, y, W: refine_annealed(KEY, make_spaces(x, y), make_estimate(W), config=CONFIG),
    "refine_by_region": lambda x, y, W: refine_by_region(KEY, make_spaces(x, y), make_estimate(W), config=CONFIG),
    "refine_whole": lambda x, y, W: refine_whole(KEY, make_spaces(x, y), make_estimate(W), config=CONFIG),
    "polish": lambda x, y, W: polish(KEY, make_spaces(x, y), jnp.asarray(W, x.dtype), config=CONFIG),
    "evidence": lambda x, y, W: gather_evidence(KEY, make_spaces(x, y), make_spaces(x[:50], y[:40]), W),
}


def assert_same(found, expected, atol=1e-10):
    for (path, one), other in zip(jax.tree_util.tree_leaves_with_path(expected), jax.tree.leaves(found), strict=True):
        np.testing.assert_allclose(np.float64(other), np.float64(one), atol=atol, err_msg=jax.tree_util.keystr(path))


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_over_the_row_axis_is_that_of_one_device(name):
    with jax.enable_x64(True):
        arguments = [jnp.asarray(rows) for rows in (X, Y, W)]
        expected = jax.jit(STAGES[name])(*arguments)
        for row_devices in (2, 8):
            mesh = make_mesh(1, row_devices=row_devices)
            found = jax.jit(over_mesh(STAGES[name], mesh, *[EVERYWHERE] * 3))(*arguments)
            assert_same(found, expected)


def test_each_device_sums_its_own_rows_of_a_space():
    x = np.concatenate([np.zeros((3, 5)), rng.normal(size=(61, 5)) + 1])
    with jax.enable_x64(True):
        expected = jax.jit(fit_space)(jnp.asarray(x))
        over = over_mesh(fit_space, make_mesh(1, row_devices=8), BY_ROWS)
        assert_same(jax.jit(over)(jnp.asarray(x)), expected)
        assert_same(expected.centering.mean, x[3:].mean(axis=0))
        # The median is that of the rows of all devices.
        x[:16] *= 1e-3
        x[60] *= 1e6
        expected = jax.jit(fit_space)(jnp.asarray(x))
        assert_same(jax.jit(over)(jnp.asarray(x)), expected)
        assert_same(expected.centering.mean, shortened(x)[3:].mean(axis=0))


@pytest.fixture(scope="module")
def clouds():
    planted = planted_clouds(8, 8, num_x=1_500, num_y=1_400)
    return np.float64(planted.x), np.float64(planted.y)


@pytest.fixture(scope="module")
def fit(clouds):
    config = small_config(
        published_match_steps=0,
        published_cluster_steps=0,
        annealing_rows=600,
        settling_rows=700,
        settling_whole_rows=1_500,
    )

    def run(mesh):
        with jax.enable_x64(True):
            return align_restarts(KEY, *clouds, 3, config, num_settled=2, keep="all", mesh=mesh)

    return run, run(None)


@pytest.mark.slow
@pytest.mark.parametrize("row_devices", [2, 8], ids=["both axes", "row axis"])
def test_a_fit_over_either_axis_and_over_both_is_that_of_one_device(fit, row_devices):
    run, expected = fit
    assert_same(run(make_mesh(3, row_devices=row_devices)), expected, atol=1e-7)


@pytest.mark.slow
def test_restarts_do_not_communicate(clouds):
    """The compiled program gathers results over the restart axis once, at the end, outside of every loop."""
    config = small_config(search_dims=4)
    rows = jax.jit(lambda x, y: prepare(x, y, config))(*(pad_rows(rows[:200], 1_000) for rows in clouds))

    def search(keys, rows):
        return Inline().each(SEARCHING, search_once, keys, rows, config)

    over = jax.jit(over_mesh(search, make_mesh(8, row_devices=1), EVERYWHERE, EVERYWHERE))
    text = over.lower(restart_keys(KEY, 0, 8), rows).compile().as_text()
    assert "all-gather" in text
    assert not re.search(r"= \S+ (all-reduce|collective-permute|all-to-all|reduce-scatter)", text)
    in_loops = [body for body in text.split("\n\n") if "all-gather" in body and not body.lstrip().startswith("ENTRY")]
    assert not in_loops


def test_gathered_and_summed_shards_are_the_whole():
    mesh = make_mesh(1, row_devices=8)
    values = jnp.arange(1, 14.0)

    def both(values):
        return all_gather(shard(values, ROW), ROW, 13), psum(shard(values, ROW).sum(), ROW), shard(values, RESTART)

    for found, expected in zip(over_mesh(both, mesh, EVERYWHERE)(values), (values, 91, values), strict=True):
        np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(both(values)[0], values)


def test_restarts_are_spread_first_and_a_mesh_that_does_not_fit_is_refused():
    shapes = [dict(make_mesh(restarts).shape) for restarts in (1, 2, 12, 100, 256)]
    assert [(shape[RESTART], shape[ROW]) for shape in shapes] == [(1, 8), (2, 4), (4, 2), (4, 2), (8, 1)]
    with pytest.raises(InputError, match="must divide the 8 devices there are, found 3"):
        make_mesh(4, row_devices=3)
    with pytest.raises(InputError, match="must divide the padded rows, 64, found 3; use a smaller power of two"):
        pad_rows(np.ones((61, 3)), 100, make_mesh(1, row_devices=3, devices=jax.devices()[:3]))


def test_devices_that_do_not_divide_share_rows_by_powers_of_two():
    devices = jax.devices()[:6]
    shapes = [dict(make_mesh(restarts, devices=devices).shape) for restarts in (1, 2, 3, 4)]
    assert [(shape[RESTART], shape[ROW]) for shape in shapes] == [(3, 2), (6, 1), (3, 2), (6, 1)]


def test_inside_a_mesh_of_the_user_nothing_is_shared():
    mesh = jax.sharding.Mesh(np.asarray(jax.devices()[:4]), (ROW,))
    rows = jnp.asarray(X[:64], jnp.float32)
    alone = jax.shard_map(lambda x: fit_space(x).centering.mean[None], mesh=mesh, in_specs=BY_ROWS, out_specs=BY_ROWS)
    expected = np.stack([fit_space(rows[first : first + 16]).centering.mean for first in range(0, 64, 16)])
    np.testing.assert_allclose(jax.jit(alone)(rows), expected, atol=1e-6)


def test_rows_over_a_mesh_are_those_of_one_device():
    x = np.float32(rng.normal(size=(200, 3)))
    for max_rows in (100, 1_000):
        one, many = pad_rows(x, max_rows), pad_rows(x, max_rows, make_mesh(2, row_devices=4))
        assert_same(many, one, atol=0)
        assert {shard.data.shape[0] for shard in many.rows.addressable_shards} == {one.rows.shape[0] // 4}
