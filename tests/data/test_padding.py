"""Padding and sampling: what they change, and what they must not change."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_trees_close, planted_clouds, shortened, small_config

from mv2v_jax import align, align_restarts
from mv2v_jax.alignment.api import _align, fit_restarts
from mv2v_jax.alignment.estimate import Estimate
from mv2v_jax.alignment.refine_annealed import refine_csls, refine_whole
from mv2v_jax.alignment.refine_published import refine_matching
from mv2v_jax.alignment.space import TwoSpaces, fit_space, hold_out
from mv2v_jax.data.padding import pad_rows, padded_shapes, padded_size
from mv2v_jax.data.row_files import RowFiles, open_rows
from mv2v_jax.data.scan import CheckedRows
from mv2v_jax.ops.kmeans import kmeans
from mv2v_jax.ops.sharding import make_mesh

FEW = 2**17
# These tests concern the rows before any stage, and compiling is their cost: run as few stages as possible.
FEWEST = {
    "published_match_steps": 0,
    "published_cluster_steps": 0,
    "annealing_steps": 0,
    "settling_steps": 0,
    "settling_whole_steps": 0,
}


@pytest.fixture(scope="module")
def planted():
    return planted_clouds(8, 6)


@pytest.mark.parametrize("num_rows", [*range(1, 200), 2_999, 3_072, 3_073, 25_904, 1_000_000])
def test_a_size_is_at_most_an_eighth_larger_and_its_own_size(num_rows):
    size = padded_size(num_rows)
    assert num_rows <= size <= num_rows * 9 / 8
    assert padded_size(size) == size


def test_there_are_eight_sizes_from_one_doubling_to_the_next():
    assert len({padded_size(num_rows) for num_rows in range(4_097, 8_193)}) == 8


@pytest.mark.parametrize("kind", [np.asarray, jnp.asarray])
def test_padding_is_zero_rows_behind_the_data(rng, kind):
    x = rng.normal(size=(35, 3)).astype(np.float16)
    rows, num_rows, mean, seeds = pad_rows(kind(x), FEW)
    assert mean is None
    assert seeds is None
    assert (rows.shape, rows.dtype, int(num_rows)) == ((36, 3), jnp.float16, 35)
    np.testing.assert_array_equal(rows[:35], x)
    assert not rows[35:].any()


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("max_rows", [20, 100])
def test_shapes_are_known_before_the_rows_are_read(rng, dtype, max_rows):
    rows = rng.normal(size=(33, 4)).astype(dtype)
    padded = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), pad_rows(rows, max_rows))
    assert padded_shapes(rows, max_rows) == padded


@pytest.mark.parametrize("kind", [np.asarray, jnp.asarray])
def test_a_sample_has_distinct_rows_in_their_order(rng, kind):
    x = rng.normal(size=(500, 2))
    rows, num_rows, mean, _ = pad_rows(kind(x), 64)
    np.testing.assert_allclose(mean, x.mean(0), atol=1e-7)
    assert int(num_rows) == 64
    places = [int(np.flatnonzero((np.float32(x) == np.asarray(row)).all(1))[0]) for row in rows]
    assert places == sorted(set(places))
    assert places != list(range(64))
    np.testing.assert_array_equal(rows, pad_rows(x, 64).rows)


def test_a_file_is_read_only_where_rows_are_drawn(tmp_path, rng, monkeypatch):
    np.save(tmp_path / "x.npy", rng.normal(size=(300, 4)).astype(np.float16))
    stored = open_rows(tmp_path / "x.npy")
    read = []
    monkeypatch.setattr(
        RowFiles, "__getitem__", lambda self, index: read.append(index) or np.asarray(stored._read(index))
    )
    drawn = pad_rows(CheckedRows(stored, np.ones(4)), 50)
    assert [len(index) for index in read] == [50]
    np.testing.assert_array_equal(drawn.mean, np.ones(4))
    np.testing.assert_array_equal(drawn.rows, pad_rows(np.load(tmp_path / "x.npy"), 50).rows)


@pytest.mark.parametrize("mesh", [False, True])
@pytest.mark.parametrize("kind", ["array", "jax", "file"])
def test_chosen_rows_alone_are_read_and_padded(tmp_path, rng, monkeypatch, kind, mesh):
    rows = rng.normal(size=(300, 4)).astype(np.float32)
    np.save(tmp_path / "x.npy", rows)
    x = {"array": rows, "jax": jnp.asarray(rows), "file": open_rows(tmp_path / "x.npy")}[kind]
    read = []
    original = RowFiles._read
    monkeypatch.setattr(RowFiles, "_read", lambda self, index: read.extend(index) or original(self, index))
    index = np.array([299, 7, 7, 120, 3])
    over = make_mesh(1, row_devices=1, devices=jax.devices()[:1]) if mesh else None
    found = pad_rows(x, 200, over, rows[:2], index=index)
    np.testing.assert_array_equal(found.rows, rows[index])
    assert int(found.num_rows) == 5
    assert found.mean is None
    np.testing.assert_array_equal(found.seeds, rows[:2])
    assert set(read) <= set(index)


def test_a_space_does_not_know_its_padding(rng):
    x = rng.normal(size=(35, 3)).astype(np.float32)
    x[4] = 0
    padded, plain = fit_space(*pad_rows(x, FEW)), fit_space(jnp.asarray(x))
    np.testing.assert_allclose(padded.rows[:35], plain.rows, atol=1e-6)
    np.testing.assert_allclose(padded.centering.mean, plain.centering.mean, atol=1e-6)
    np.testing.assert_allclose(padded.centering.scale, plain.centering.scale, rtol=1e-6)
    assert int(padded.zero_rows) == int(plain.zero_rows) == 1


def test_held_out_rows_are_rows_of_the_data(rng):
    space = fit_space(*pad_rows(rng.normal(size=(257, 3)).astype(np.float32), FEW))
    fitted, held_out = hold_out(space.rows, 28)
    assert held_out.any(axis=1).all()
    assert fitted[: 257 - 28].any(axis=1).all()
    assert not fitted[257 - 28 :].any()


@pytest.mark.parametrize("seed", range(3))
def test_padding_is_no_cluster(rng, seed):
    centers = 3 * rng.normal(size=(4, 5))
    x = (centers[rng.integers(4, size=60)] + 0.1 * rng.normal(size=(60, 5))).astype(np.float32)
    padded = jnp.concatenate([jnp.asarray(x), jnp.zeros((40, 5))])
    found, plain = (
        kmeans(jax.random.key(seed), rows, num_clusters=4, num_steps=10) for rows in (padded, jnp.asarray(x))
    )
    assert float(found.counts.sum()) == 60
    for clusters in (found, plain):
        np.testing.assert_allclose(np.sort(clusters.centers, axis=0), np.sort(plain.centers, axis=0), atol=1e-4)
    np.testing.assert_allclose(found.inertia, plain.inertia, rtol=1e-4)


def run_stage(stage, rows, start, config):
    return stage(jax.random.key(0), TwoSpaces(x=rows[0], y=rows[1]), start, config=config)


# Few rows, which are searched exactly, and many rows, searched in groups that one more row does not change. Both spaces
# get equally many rows: matches from a space are weighted by its number of rows, with the padding.
@pytest.mark.parametrize(("num_rows", "more"), [(400, 17), (799, 1)])
@pytest.mark.parametrize("stage", [refine_matching, refine_csls, refine_whole])
def test_stages_that_see_all_rows_do_not_see_padding(planted, stage, num_rows, more):
    everything = {"published_match_rows": 10**6, "settling_rows": 10**6, "settling_whole_rows": 10**6}
    config = small_config(published_match_steps=2, settling_steps=2, settling_whole_steps=2, **everything)
    with jax.enable_x64(True):  # In float64 no choice depends on rounding.
        clouds = planted.x[:num_rows], planted.y[:num_rows]
        spaces = [fit_space(jnp.asarray(rows, jnp.float64)).rows for rows in clouds]
        padded = [jnp.pad(rows, ((0, more), (0, 0))) for rows in spaces]
        start = Estimate(matrix=jnp.asarray(planted.W), is_map=True)
        found, plain = (run_stage(stage, rows, start, config) for rows in (padded, spaces))
        np.testing.assert_allclose(found.estimate.matrix, plain.estimate.matrix, atol=1e-9)
        np.testing.assert_allclose(found.objective, plain.objective, atol=1e-9)


@pytest.mark.parametrize("stage", [refine_csls, refine_whole])
def test_padding_that_changes_the_groups_of_a_search_changes_little(planted, stage):
    config = small_config(settling_steps=2, settling_rows=10**6, settling_whole_steps=2, settling_whole_rows=10**6)
    spaces = [fit_space(jnp.asarray(rows)).rows for rows in (planted.x, planted.y)]
    padded = [jnp.pad(rows, ((0, 17), (0, 0))) for rows in spaces]
    start = Estimate(matrix=jnp.asarray(planted.W, jnp.float32), is_map=True)
    found, plain = (run_stage(stage, rows, start, config) for rows in (padded, spaces))
    np.testing.assert_allclose(found.estimate.matrix, plain.estimate.matrix, atol=5e-3)
    np.testing.assert_allclose(found.objective, plain.objective, atol=2e-3)


def test_data_of_similar_size_compiles_nothing_new(planted):
    config = small_config(**FEWEST)
    _align.clear_cache()
    for num_x, num_y in ((900, 800), (897, 783)):
        align(jax.random.key(0), planted.x[:num_x], planted.y[:num_y], config)
    assert _align._cache_size() == 1
    align(jax.random.key(0), planted.x[:700], planted.y, config)
    assert _align._cache_size() == 2


def test_larger_data_is_sampled_and_centred_by_the_mean_of_all(planted):
    config = small_config(max_rows=128, **FEWEST)
    whole = align_restarts(jax.random.key(0), planted.x, planted.y, 1, config)
    drawn = [pad_rows(rows, 128) for rows in (planted.x, planted.y)]
    sampled = fit_restarts(
        jax.random.key(0), *drawn, config, num_restarts=1, batch_size=1, keep="summary", num_settled=1, mesh=None
    )
    np.testing.assert_array_equal(whole.best.map.W, sampled.best.map.W)
    np.testing.assert_allclose(whole.best.map.source.mean, planted.x.mean(0, dtype=np.float64), atol=1e-6)
    np.testing.assert_allclose(whole.best.map.target.mean, planted.y.mean(0, dtype=np.float64), atol=1e-6)
    assert np.abs(np.asarray(drawn[0].rows).mean(0) - planted.x.mean(0)).max() > 1e-2


def test_the_mean_of_all_leaves_zero_rows_out_and_is_the_same_when_traced(rng):
    x = rng.normal(size=(3_000, 4)).astype(np.float16) + np.float16(100)
    x[:1_000] = 0
    expected = x[1_000:].astype(np.longdouble).mean(0)
    np.testing.assert_allclose(pad_rows(x, 64).mean, expected, rtol=1e-7)
    traced = jax.jit(lambda x: pad_rows(x, 64).mean)(x)
    np.testing.assert_allclose(traced, expected, rtol=1e-6)
    space = fit_space(*pad_rows(x, 64))
    np.testing.assert_allclose(space.centering.mean, expected, rtol=1e-7)
    sample = np.asarray(pad_rows(x, 64).rows, np.float64)
    lengths = np.linalg.norm(sample[sample.any(1)] - np.float64(expected), axis=1)
    np.testing.assert_allclose(space.centering.scale, lengths.mean(), rtol=1e-5)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_the_mean_of_all_is_not_moved_by_one_row(rng, dtype):
    x = (0.01 * (rng.normal(size=(3_000, 4)) + 1)).astype(dtype)
    x[7] = 6e4
    expected = shortened(x).mean(0)
    np.testing.assert_allclose(pad_rows(x, 64).mean, expected, rtol=1e-4)
    np.testing.assert_allclose(jax.jit(lambda x: pad_rows(x, 64).mean)(x), expected, rtol=1e-5)


@pytest.mark.parametrize("kind", ["file", "shards", "memory map"])
def test_rows_on_disk_are_aligned_as_arrays_are(planted, tmp_path, kind):
    config = small_config(max_rows=128, **FEWEST)
    sides = []
    for name, rows in (("x", planted.x), ("y", planted.y)):
        (tmp_path / name).mkdir()
        for part, shard in enumerate(np.array_split(rows, 7) if kind == "shards" else [rows]):
            np.save(tmp_path / name / f"{part}.npy", shard)
        path = tmp_path / name if kind == "shards" else tmp_path / name / "0.npy"
        sides.append(np.load(path, mmap_mode="r") if kind == "memory map" else open_rows(path))
    for max_rows in (128, FEW):
        for on_disk, rows in zip(sides, (planted.x, planted.y), strict=True):
            assert_trees_close(pad_rows(on_disk, max_rows), pad_rows(rows, max_rows), rtol=0, atol=0)
    found, expected = (align(jax.random.key(0), *rows, config) for rows in (sides, (planted.x, planted.y)))
    assert_trees_close(found.map, expected.map, rtol=0, atol=0)
