"""Other methods for the same problem find pairs that are there, and all methods end in one table."""

import contextlib
import dataclasses
import io
import json
import subprocess

import numpy as np
import pytest

from benchmarks import peers, reference, vecmap

ROWS = ["--rows", "240", "--eval", "40"]


@pytest.fixture
def tiny_peers(monkeypatch, tiny):
    """Every method in this process instead of a child, in few steps."""

    def run_here(command, **_):
        assert command[1:3] == ["-m", "benchmarks.peers"]
        with contextlib.redirect_stdout(io.StringIO()) as out:
            peers.main(command[3:])
        return subprocess.CompletedProcess(command, 0, stdout=out.getvalue())

    monkeypatch.setattr(peers.subprocess, "run", run_here)
    monkeypatch.setattr(peers, "WASSERSTEIN", dataclasses.replace(reference.Settings(), steps=8, step_rows=60))
    monkeypatch.setattr(peers, "GROMOV_STEPS", 5)


@pytest.mark.slow
def test_peers_in_one_table(tiny_peers, tmp_path, capsys):
    pytest.importorskip("ot")
    pytest.importorskip("ott")
    file = tmp_path / "peers.json"
    # Both presets run in the same way, and compiling is what takes time here.
    methods = [name for name in peers.DEFAULT_METHODS if name != "default"]
    arguments = ["--methods", ",".join(methods), "--wp-steps", "2", "--gw-rows", "50", "--json", str(file)]
    peers.main([*ROWS, *arguments])
    found = json.loads(file.read_text())
    assert list(found["runs"]) == methods
    for name, run in found["runs"].items():
        assert run["rows"] == (50 if name in ("pot", "ott") else 100)
        assert 0 <= run["scores"]["top1"] <= 1
        assert run["peak_bytes"] > 0
        assert run["process_seconds"] > run["seconds"]
        assert (run["compile_seconds"] is not None) == (name in ("ott", "muse", *peers.OURS))
        assert (run["missing_seconds"] > 0) == (name == "wasserstein")
    assert found["runs"]["wasserstein"]["steps"] == [2, 8]
    assert {"pot", "ott-jax"} <= set(found["environment"])
    out = capsys.readouterr().out
    assert "…" not in out
    assert "Wasserstein Procrustes ran 2 of 8 steps" in out
    assert "whole seconds over those of fast: " in out


def test_peers_can_be_chosen_and_missing_ones_are_named(tiny_peers, monkeypatch, capsys):
    arguments = [*ROWS, "--wp-steps", "99", "--methods"]
    assert list(peers.main([*arguments, "wasserstein"])["runs"]) == ["wasserstein"]
    out = capsys.readouterr().out
    assert "extrapolated" not in out
    assert "POT" not in out
    monkeypatch.setattr(peers.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match=r"OTT-JAX needs the package ott-jax: pip install 'mv2v_jax\[bench\]'"):
        peers.main([*arguments, "ott"])
    for wrong in (["--methods", "none"], ["--wp-steps", "0"], ["--corpus", "none"]):
        with pytest.raises(SystemExit, match="2"):
            peers.main(wrong)


def test_peers_run_on_the_data_sets_of_generality(tiny_peers, tmp_path, rng, capsys):
    with pytest.raises(SystemExit, match="name it with --data"):
        peers.main(["--corpus", "web"])
    with pytest.raises(SystemExit, match=r"--data: .* has no web\.minilm\.npy"):
        peers.main(["--corpus", "web", "--data", str(tmp_path)])
    for name, width in (("minilm", 6), ("e5", 5)):
        np.save(tmp_path / f"web.{name}.npy", rng.normal(size=(6_100, width)).astype(np.float16))
    found = peers.main(["--corpus", "web", "--data", str(tmp_path), "--methods", "vecmap"])
    assert found["data"] == {"data": "web", "eval": 6_000}
    assert found["runs"]["vecmap"]["rows"] == 50
    assert "n 50, m 50, evaluated on 6,000" in capsys.readouterr().out


def test_peers_compare_the_whole_of_wasserstein_procrustes(capsys):
    scores = dict.fromkeys(peers.METRICS, 0.5)

    def run(seconds, missing=0.0):
        steps = [3, 100] if missing else None
        found = {"rows": 100, "seconds": seconds, "missing_seconds": missing, "steps": steps, "scores": scores}
        return {
            **found,
            "process_seconds": 2 * seconds,
            "compile_seconds": None,
            "peak_bytes": 2**30,
            "resident_bytes_before": 2**29,
        }

    peers.show({"wasserstein": run(100.0, missing=1_900.0), "fast": run(10.0), "default": run(20.0)}, scores)
    out = capsys.readouterr().out
    assert "whole seconds over those of fast: 200.0 (Wasserstein Procrustes), 2.0 (`default` preset)" in out
    assert "whole seconds over those of default: 100.0 (Wasserstein Procrustes), 0.5 (`fast` preset)" in out


def make_pairs(rng, num_pairs):
    """Unit rows and a rotation of them ``[num_pairs, 6]``, and the rotation."""
    x = reference.unit_rows(rng.normal(size=(num_pairs, 6)))
    rotation = np.linalg.qr(rng.normal(size=(6, 6)))[0]
    return x, x @ rotation, rotation


def test_peers_find_pairs_that_are_there(rng):
    x, y, rotation = make_pairs(rng, 40)
    order = rng.permutation(40)
    found = peers.procrustes_one_to_one(x, y[order], x @ rotation @ y[order].T)
    np.testing.assert_allclose(found, rotation, atol=1e-6)
    plan = np.eye(40)[:, order] / 40
    np.testing.assert_allclose(peers.procrustes_plan(x, y[order], plan), rotation, atol=1e-6)
    rows, columns = peers.mutual_neighbors(y, y[order], 3)
    np.testing.assert_array_equal(rows, np.arange(40))
    np.testing.assert_array_equal(order[columns], rows)


def test_peers_mutual_neighbors_are_those_of_all_similarities_at_once(rng):
    x, y = (reference.unit_rows(rng.normal(size=(n, 5))) for n in (2 * reference.BLOCK_ROWS + 7, 300))
    similarity = x @ y.T
    density_x, density_y = (np.sort(s, axis=1)[:, -10:].mean(axis=1) for s in (similarity, similarity.T))
    csls = 2 * similarity - density_x[:, None] - density_y
    expected = [(i, j) for i, j in enumerate(csls.argmax(axis=1)) if csls[:, j].argmax() == i]
    assert list(zip(*peers.mutual_neighbors(x, y, 10), strict=True)) == expected


def test_the_reference_on_torch_is_that_on_numpy(rng):
    pytest.importorskip("torch")
    from benchmarks.reference_torch import TORCH

    settings = reference.Settings(
        num_sets=4, num_clusters=4, anchor_rows=200, num_starts=3, num_neighbors=5, steps=3, refine_clusters=20
    )
    x, y = (rng.normal(size=(300, d)).astype(np.float32) for d in (6, 5))
    expected, _ = reference.fit(x, y, 0, settings=settings)
    found, _ = reference.fit(x, y, 0, settings=dataclasses.replace(settings, library=TORCH))
    np.testing.assert_allclose(found.W, expected.W, atol=1e-4)


def test_vecmap_learns_a_planted_map_by_itself(rng):
    """The same rows in another order; their similarities are a fingerprint of each."""
    x = rng.exponential(size=(300, 8)) ** 1.5 * np.linspace(2, 0.5, 8)
    x = reference.unit_rows(x - x.mean(axis=0))
    rotation = np.linalg.qr(rng.normal(size=(8, 8)))[0]
    order = rng.permutation(300)
    W, steps = vecmap.self_learn(x, (x @ rotation)[order], rng)
    assert 1 < steps < vecmap.VecMapSettings().max_steps
    mapped = reference.unit_rows(x @ W)
    assert ((mapped @ (x @ rotation).T).argmax(axis=1) == np.arange(300)).mean() > 0.99
    np.testing.assert_allclose(W, rotation, atol=1e-2)


def test_vecmap_csls_is_that_of_its_definition(rng):
    similarity = rng.normal(size=(7, 9))
    expected = np.array(
        [
            [
                similarity[i, j] - np.sort(similarity[i])[-3:].mean() / 2 - np.sort(similarity[:, j])[-3:].mean() / 2
                for j in range(9)
            ]
            for i in range(7)
        ]
    )
    np.testing.assert_allclose(vecmap.csls_similarity(similarity, 3), expected, atol=1e-12)
    rows, columns = vecmap.match_both_ways(expected)
    assert len(rows) == len(columns) == 16
    assert columns[2] == expected[2].argmax()
    assert rows[7 + 4] == expected[:, 4].argmax()


def test_peers_gromov_wasserstein_solve_the_same_problem(rng, lenient_promotion, monkeypatch):
    pytest.importorskip("ot")
    pytest.importorskip("ott")
    monkeypatch.setattr(peers, "GROMOV_EPSILON", 0.05)
    x, y, _ = make_pairs(rng, 30)
    plan, compiling = peers.solve_ott(x.astype(np.float32), y[::-1].astype(np.float32))
    assert compiling > 0
    # Far from the uniform plan that both start from.
    assert plan.max() > 2 / 30**2
    np.testing.assert_allclose(plan, peers.solve_pot(x, y[::-1])[0], atol=1e-4)
