"""The benchmarks run, judge and remember; on sizes that take seconds. Nothing here looks at a clock."""

import dataclasses
import itertools
import json

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load, save

from benchmarks import common, make_bundled, qap, quality, reference, speed
from mv2v_jax import Config, metrics, notebook

SETTINGS = reference.Settings(
    num_sets=6, num_clusters=8, anchor_rows=300, num_starts=4, num_neighbors=5, steps=8, refine_clusters=20
)
TINY = {"num_anchor_sets": 3, "num_clusters": 4, "lloyd_steps": 3, "num_starts": 2, "search_steps": 5, "kept_sets": 2}
PRESETS = {
    "notebook": lambda: dataclasses.replace(notebook(), **TINY, match_steps=2, cluster_steps=0),
    "default": lambda: dataclasses.replace(Config(), **TINY, anneal_steps=2, csls_steps=0),
}
ROWS = ["--rows", "240", "--eval", "40"]


@pytest.fixture
def bundled(monkeypatch, tmp_path):
    """Only the bundled set is there, as for a stranger."""
    monkeypatch.setattr(common, "SHARED", tmp_path / "nowhere")


@pytest.fixture
def tiny(monkeypatch, bundled):
    """Presets and settings that compile and finish soon; the maps are worth nothing."""
    for module in (quality, speed):
        monkeypatch.setattr(module, "PRESETS", PRESETS)
    monkeypatch.setattr(reference, "Settings", lambda: dataclasses.replace(SETTINGS, num_clusters=4, steps=2))
    monkeypatch.setattr(speed, "SEARCH_STARTS", 4)


@pytest.mark.parametrize("d_y", [16, 12])
def test_reference_recovers_a_planted_rotation_from_disjoint_halves(d_y):
    rng = np.random.default_rng(0)
    places = rng.normal(size=(8, 12)) * rng.uniform(1, 3, size=(8, 1))
    rows = places[rng.integers(0, 8, 1_500)] + 0.5 * rng.normal(size=(1_500, 12))
    bases = [np.linalg.qr(rng.normal(size=(d, d)))[0][:12] for d in (16, d_y)]
    x, y = ((rows @ basis + 0.01 * rng.normal(size=(1_500, basis.shape[1]))).astype(np.float32) for basis in bases)
    linear_map, stages = reference.fit(x[:600], y[600:1_200], 0, settings=SETTINGS)
    assert linear_map.W.shape == (16, d_y)
    assert linear_map.W.dtype == np.float32
    assert list(stages) == ["preprocess", "clustering", "assignment", "initial map", "refine-1", "refine-2"]
    scores = metrics.evaluate(linear_map, jnp.asarray(x[1_200:]), jnp.asarray(y[1_200:]))
    assert scores.foscttm < 0.05
    assert scores.cosine > 0.9


def test_reference_means_are_those_of_the_nearest_rows():
    rng = np.random.default_rng(0)
    queries, bank, values = (rng.normal(size=shape).astype(np.float32) for shape in ((600, 5), (40, 5), (40, 3)))
    nearest = np.argsort(-(queries @ bank.T), axis=1)[:, :7]
    found = reference.neighbor_means(queries, bank, values, 7)
    np.testing.assert_allclose(found, values[nearest].mean(axis=1), rtol=1e-5, atol=1e-6)
    # More neighbours than there are rows: all of them.
    np.testing.assert_allclose(
        reference.neighbor_means(queries, bank, values, 99), np.tile(values.mean(axis=0), (600, 1)), atol=1e-5
    )


def test_brute_force_finds_every_optimum():
    assert qap.run_brute_force(5, num_kernels=10, num_starts=8, num_steps=40)["optimal"] == 10


def write_instance(folder, a, b, permutation, value):
    lines = [str(len(a)), *(" ".join(map(str, row)) for row in (*a, *b))]
    (folder / "tiny.dat").write_text("\n".join(lines))
    (folder / "tiny.sln").write_text(f"{len(a)} {value}\n" + " ".join(str(p + 1) for p in permutation))


def test_qap_reads_and_solves_an_instance_with_one_asymmetric_matrix(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 9, size=(2, 5, 5))
    b = b + b.T
    best = min(itertools.permutations(range(5)), key=lambda p: qap.value(a, b, np.array(p)))
    folder = tmp_path / "qaplib"
    folder.mkdir()
    write_instance(folder, a, b, best, qap.value(a, b, np.array(best)))
    arguments = ["--data", str(tmp_path), "--instances", "tiny", "--seeds", "2", "--starts", "8", "--steps", "30"]
    monkeypatch.setattr(qap, "BRUTE_FORCE_SIZES", (4,))
    qap.main([*arguments, "--kernels", "3", "--json", str(tmp_path / "out.json")])
    found = json.loads((tmp_path / "out.json").read_text())
    assert found["qaplib"]["tiny"]["mv2v_jax"]["at_optimum"] == 1
    assert found["qaplib"]["tiny"]["scipy"]["mean_gap"] >= 0

    write_instance(folder, a, b, best, 1)
    with pytest.raises(SystemExit, match="must be worth 1, found"):
        qap.main(arguments)


def test_qap_without_instances_falls_back_to_brute_force(bundled, monkeypatch, capsys):
    monkeypatch.setattr(qap, "BRUTE_FORCE_SIZES", (4,))
    verdicts = qap.main(["--kernels", "3", "--starts", "8", "--steps", "30"])
    assert "brute force only" in capsys.readouterr().out
    assert [verdict["passed"] for verdict in verdicts] == [None, True]


def test_quality_runs_on_the_bundled_set(tiny, tmp_path, capsys):
    file = tmp_path / "quality.json"
    quality.main([*ROWS, "--seeds", "2", "--json", str(file)])
    found = json.loads(file.read_text())
    assert {name: len(runs) for name, runs in found["scores"].items()} == {"reference": 2, "notebook": 2, "default": 2}
    assert 0.1 < found["oracle"]["top1"] <= 1
    assert found["data"]["data"] == "bundled"
    out = capsys.readouterr().out
    assert "data: bundled" in out
    assert out.count("PASS") + out.count("FAIL") == 3


def test_quality_judges_medians_and_worst_seeds():
    def runs(*values):
        return [{"top1": value} for value in values]

    good = {"reference": runs(0.5, 0.6, 0.55), "notebook": runs(0.56, 0.2, 0.9), "default": runs(0.7, 0.68, 0.55)}
    assert [verdict["passed"] for verdict in quality.judge(good)] == [True, True, False]
    steady = {**good, "notebook": runs(0.53, 0.53, 0.53), "default": runs(0.54, 0.55, 0.56)}
    assert [verdict["passed"] for verdict in quality.judge(steady)] == [False, False, True]
    del steady["reference"]
    assert [verdict["passed"] for verdict in quality.judge(steady)] == [None, None, True]


def test_speed_times_every_stage(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(speed, "TIMED_PRESETS", ("default",))
    file = tmp_path / "speed.json"
    verdicts = speed.main([*ROWS, "--repeats", "1", "--json", str(file)])
    found = json.loads(file.read_text())
    assert list(found["whole"]) == ["reference", "default"]
    assert {"preprocess", "anchor sets", "initial map", "refine_annealed", "finish"} <= set(found["stages"]["default"])
    assert max(run["mean_share"] for run in found["searches"].values()) <= 1
    assert all(verdict["passed"] is not None for verdict in verdicts)


def test_protocol_shares_no_text():
    source, target = np.arange(11)[:, None], np.arange(11)[:, None]
    split = common.split_rows(source, target, 2)
    assert not set(split.x.ravel()) & set(split.y.ravel())
    np.testing.assert_array_equal(split.x, split.y_true)
    np.testing.assert_array_equal(split.x_eval.ravel(), [9, 10])
    np.testing.assert_array_equal(split.y_eval.ravel(), [9, 10])
    with pytest.raises(SystemExit, match="cannot judge on 11"):
        common.split_rows(source, target, 11)


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
