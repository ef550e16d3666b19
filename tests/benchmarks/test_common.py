"""What the benchmarks share: the protocol, planted spaces, counted work, and the bundled rows."""

import itertools
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load, save

from benchmarks import common, growth, make_bundled, planted, roofline, scaling, soak, work
from mv2v_jax.ops.sharding import EVERYWHERE, ROW, all_gather, make_mesh, over_mesh, psum


def test_protocol_shares_no_text():
    source, target = np.arange(11)[:, None], np.arange(11)[:, None]
    split = common.split_rows(source, target, 2)
    assert not set(split.x.ravel()) & set(split.y.ravel())
    np.testing.assert_array_equal(split.x, split.y_true)
    np.testing.assert_array_equal(split.x_eval.ravel(), [9, 10])
    np.testing.assert_array_equal(split.y_eval.ravel(), [9, 10])
    with pytest.raises(SystemExit, match="cannot evaluate on 11"):
        common.split_rows(source, target, 11)


def parse(*arguments):
    parser = common.make_parser("")
    common.add_data_options(parser)
    return parser.parse_args(arguments)


def test_rows_are_the_bundled_ones_or_those_of_a_folder(tmp_path, capsys):
    split, record = common.load_split(parse("--rows", "60", "--eval", "10"))
    assert record == {"data": "bundled", "source": "minilm", "target": "wordllama", "rows": 60, "eval": 10}
    assert [side.shape for side in (split.x, split.y, split.x_eval)] == [(25, 384), (25, 256), (10, 384)]
    for name in common.BUNDLED_ENCODERS:
        np.save(tmp_path / f"wordnet.{name}.npy", np.ones((9_000, 3), np.float16))
    split, record = common.load_split(parse("--data", str(tmp_path), "--rows", "90"))
    # The proportion of rows to evaluate on is kept.
    assert (record["data"], len(split.x_eval), split.x.dtype) == ("given", 90 * 8_192 // 9_000, np.float32)
    assert f"data: given ({tmp_path}), minilm to wordllama, n 4" in capsys.readouterr().out
    with pytest.raises(SystemExit, match=r"has no wordnet\.lsa\.npy"):
        common.load_split(parse("--data", str(tmp_path), "--target", "lsa"))
    with pytest.raises(SystemExit, match="no such folder"):
        common.load_split(parse("--data", str(tmp_path / "none")))
    with pytest.raises(SystemExit, match="bundled encoders are minilm and wordllama, found lsa"):
        common.load_split(parse("--target", "lsa"))


# -------------------------------------------------------------------------------------------------------- bundled rows


def test_int8_rows_keep_their_direction_and_zero_rows_stay_zero():
    rows = np.random.default_rng(0).normal(size=(50, 64)).astype(np.float16)
    rows[3] = 0
    quantised, scale = make_bundled.quantise(rows)
    restored = quantised * scale[:, None]
    assert quantised.dtype == np.int8
    assert scale.dtype == np.float32
    assert not restored[3].any()
    assert make_bundled.cosine_error(rows, restored) < 1e-3


def test_sorted_header_is_the_same_file():
    tensors = {"b": np.arange(6, dtype=np.int8).reshape(2, 3), "a": np.arange(2, dtype=np.float32)}
    files = [
        make_bundled.sort_header(save(tensors, dict(pairs))) for pairs in itertools.permutations(["xy", "zv", "wu"])
    ]
    assert len(set(files)) == 1
    for name, array in load(files[0]).items():
        np.testing.assert_array_equal(array, tensors[name])


# ------------------------------------------------------------------------------------------------------- planted spaces


def test_planted_spaces_can_be_written_and_have_the_planted_pairs(tmp_path):
    spaces = planted.plant(3, 20)
    planted.write_side(tmp_path / "x.npy", spaces, 3, 50, 0, "float16")
    rows = planted.draw_side(spaces, 3, 50, 0)
    np.testing.assert_array_equal(np.load(tmp_path / "x.npy"), rows.astype(np.float16))
    x, y = planted.draw_pairs(spaces, 3, 400)
    # The frames are the map, and noise is small.
    centred = [a - a.mean(0) for a in (x, y)]
    mapped = centred[0] @ (spaces.frames[0].T @ spaces.frames[1])
    assert np.linalg.norm(mapped - centred[1]) < 0.1 * np.linalg.norm(centred[1])
    # No row of one side is the partner of a row of the other.
    other = planted.draw_side(spaces, 3, 50, 1) - spaces.offsets[1]
    back = (rows - spaces.offsets[0]) @ (spaces.frames[0].T @ spaces.frames[1])
    assert np.linalg.norm(back[:, None] - other[None], axis=2).min() > 0.5


def test_planted_shards_have_the_returned_mean_and_no_evaluation_row(tmp_path):
    spaces = planted.plant(3, 20)
    mean = planted.write_shards(tmp_path / "x", spaces, 3, 50, 4, 0, "float16")
    shards = [np.load(path) for path in sorted((tmp_path / "x").iterdir())]
    assert [len(shard) for shard in shards] == [12, 13, 12, 13]
    rows = np.concatenate(shards)
    np.testing.assert_allclose(mean, rows.mean(0, dtype=np.longdouble), rtol=1e-12)
    pairs, _ = planted.draw_pairs(spaces, 3, 50)
    assert np.linalg.norm(rows[:, None] - pairs[None], axis=2).min() > 0.1
    assert len(np.unique(rows, axis=0)) == 50


# --------------------------------------------------------------------------------------------------------- counted work


def test_work_counts_products_loops_and_decompositions():
    def fun(a, b):
        def step(carry, _):
            return a @ (b @ carry), carry.sum()

        final, _ = jax.lax.scan(step, jnp.eye(7), None, length=5)
        return jnp.linalg.svd(final), jnp.linalg.eigh(final + final.T)

    counted = work.count_work(fun, jnp.ones((7, 3)), jnp.ones((3, 7)))
    assert counted.matmul_flop == 5 * 2 * (2 * 7 * 3 * 7)
    assert counted.decomposition_flop == (6 + 20 + 9) * 7**3
    assert counted.bytes >= 5 * 4 * 2 * (7 * 3 + 3 * 7 + 7 * 7)


def test_work_of_a_product_is_what_the_compiler_counts(rng):
    a, b = (jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in ((30, 20), (20, 50)))
    compiled = jax.jit(jnp.matmul).lower(a, b).compile().cost_analysis()
    assert work.count_work(jnp.matmul, a, b).matmul_flop == compiled["flops"]
    assert work.count_work(jnp.matmul, a, b).bytes == compiled["bytes accessed"]


def test_work_counts_half_precision_apart(rng):
    a = jnp.asarray(rng.standard_normal((30, 20)), jnp.bfloat16)
    found = work.count_work(lambda a: a @ a.T, a)
    assert (found.half_flop, found.matmul_flop) == (2 * 30 * 20 * 30, 0)


def test_limit_is_the_longer_of_computing_and_moving():
    peaks = {"flop_per_second": 10.0, "half_flop_per_second": 20.0, "bytes_per_second": 2.0}
    assert roofline.limit_seconds(work.Work(matmul_flop=100, decomposition_flop=20, bytes=4), peaks) == 12
    assert roofline.limit_seconds(work.Work(matmul_flop=100, bytes=40), peaks) == 20
    assert roofline.limit_seconds(work.Work(matmul_flop=100, half_flop=60, bytes=4), peaks) == 13


def test_bytes_sent_are_counted_in_the_compiled_program():
    mesh = make_mesh(1, row_devices=4, devices=jax.devices()[:4])

    def fun(x):
        return psum(x, ROW), all_gather(x[:2], ROW, 8)

    compiled = jax.jit(over_mesh(fun, mesh, EVERYWHERE)).lower(jnp.ones((3, 5))).compile()
    # Around a ring an array that is summed goes nearly twice, one that is gathered nearly once.
    sent, collectives = scaling.count_sent(compiled.as_text(), 4)
    assert (sent, collectives) == (2 * 3 / 4 * 15 * 4 + 3 / 4 * 8 * 5 * 4, 2)


def test_scaling_predicts_by_what_is_computed_and_sent():
    devices = {"1": {"limit": 2.0}, "8": {"limit": 0.5, "bytes": 1e6, "collectives": 3}}
    stages = {"step": {"times": 10, "devices": devices}}
    found = scaling.predict(stages, {"step": 40.0}, 8, bandwidth=1e9, latency=1e-3)
    assert found == {"step": pytest.approx(10 * (1.0 + 1e-3 + 3e-3))}


def test_growth_exponent():
    assert growth.exponent([10, 100, 1_000], [3.0, 300.0, 30_000.0]) == pytest.approx(2)


def test_memory_is_watched_while_a_command_runs(tmp_path):
    wait = "time.sleep(0.5)"
    script = f"import sys, time, pathlib; {wait}; pathlib.Path(sys.argv[1], 'restarts-0.safetensors').touch(); {wait}"
    seen = dict(soak.watch([sys.executable, "-c", script, str(tmp_path)], tmp_path))
    assert sorted(seen) == [0, 1]
    assert all(2**20 < resident < 2**30 for resident in seen.values())
