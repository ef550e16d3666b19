"""The published method and the assignment search beside SciPy's."""

import itertools
import json

import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import qap, reference
from mv2v_jax.evaluation import metrics

SETTINGS = reference.Settings(
    num_sets=6, num_clusters=8, anchor_rows=300, num_starts=4, num_neighbors=5, steps=8, refine_clusters=20
)


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
    arguments = ["--data", str(tmp_path), "--instances", "tiny", "--seeds", "2", "--starts", "8", "--steps", "30"]
    with pytest.raises(SystemExit, match="has no folder qaplib"):
        qap.main(arguments)
    folder.mkdir()
    write_instance(folder, a, b, best, qap.value(a, b, np.array(best)))
    monkeypatch.setattr(qap, "BRUTE_FORCE_SIZES", (4,))
    qap.main([*arguments, "--kernels", "3", "--json", str(tmp_path / "out.json")])
    found = json.loads((tmp_path / "out.json").read_text())
    assert found["qaplib"]["tiny"]["mv2v_jax"]["at_optimum"] == 1
    assert found["qaplib"]["tiny"]["scipy"]["mean_gap"] >= 0

    write_instance(folder, a, b, best, 1)
    with pytest.raises(SystemExit, match="must have the value 1, found"):
        qap.main(arguments)


def test_qap_without_instances_falls_back_to_brute_force(monkeypatch, capsys):
    monkeypatch.setattr(qap, "BRUTE_FORCE_SIZES", (4,))
    record = qap.main(["--kernels", "3", "--starts", "8", "--steps", "30"])
    assert "brute force only" in capsys.readouterr().out
    assert "qaplib" not in record
    assert [(run["kernels"], run["optimal"]) for run in record["brute_force"]] == [(3, 3)]
