"""The benchmarks of training loops, of several spaces and of known pairs run and record, on sizes that take seconds."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks import common, fidelity, online, pairs, synchronize
from mv2v_jax.evaluation import metrics

# Compiling is the cost.
DIMS = 96


@pytest.fixture
def few_dims(monkeypatch):
    """Some coordinates of the bundled rows, the same number in all spaces, so that these share programs."""

    def read_rows(folder, name, read=common.read_rows):
        rows, num_eval = read(folder, name)
        return rows[:, :DIMS], num_eval

    for module in (common, synchronize):
        monkeypatch.setattr(module, "read_rows", read_rows)


def test_online_times_and_follows(few_dims, lenient_promotion, monkeypatch, tmp_path):
    def fit(key, x, y, *_):
        # Any map will do, and fitting one is what would take time here.
        return SimpleNamespace(best=SimpleNamespace(map=metrics.oracle(x, y[: len(x)], y)))

    monkeypatch.setattr(online, "align_restarts", fit)
    for name, value in {
        "TIMED_STEPS": 2,
        "HIDDEN": 8,
        "FEATURES": 4,
        "VARIANTS": ("bare", "with online_update"),
    }.items():
        monkeypatch.setattr(online, name, value)
    file = tmp_path / "out.json"
    found = online.main(["--rows", "240", "--eval", "40", "--steps", "5", "--batch", "16", "--json", str(file)])
    assert set(found["seconds"]) == set(online.VARIANTS)
    assert [run["step"] for run in found["drift"]] == [1, 2, 3, 4, 5]
    assert json.loads(file.read_text())["drift"] == found["drift"]


def test_fidelity_has_every_way_in_its_table(few_dims, monkeypatch, tmp_path):
    monkeypatch.setattr(fidelity, "align", lambda key, x, y, _: SimpleNamespace(map=metrics.oracle(x, y[: len(x)], y)))
    # Other tests differentiate that loss.
    monkeypatch.setattr(fidelity, "follow_losses", lambda linear_map, *_: linear_map)
    file = tmp_path / "out.json"
    found = fidelity.main(["--rows", "240", "--eval", "40", "--steps", "1", "--json", str(file)])
    assert {"start", "refine_contrastive", "true pairs: rotation", "true pairs: ridge"} < set(found["scores"])
    assert all(np.isfinite(value) for run in found["scores"].values() for value in run.values())
    assert json.loads(file.read_text())["scores"] == found["scores"]


def test_synchronize_finds_the_map_it_broke(few_dims, tmp_path, capsys):
    file = tmp_path / "out.json"
    found = synchronize.main(["--rows", "1500", "--eval", "300", "--supervised", "--json", str(file)])
    assert len(found["pairs"]) == 6
    assert [run["pair"] for run in found["pairs"] if run["wrong"]] == ["minilm - wordllama"]
    assert json.loads(file.read_text())["pairs"] == found["pairs"]
    broken = next(run for run in found["pairs"] if run["wrong"])
    assert broken["cycle_residual"] == max(run["cycle_residual"] for run in found["pairs"])
    assert broken["given"] < 0.05 < 0.3 < broken["synchronised"]
    assert np.isfinite(found["seconds"])
    assert "broken: minilm - wordllama; called wrong: minilm - wordllama; " in capsys.readouterr().out


def test_pairs_are_drawn_in_order_and_compared_with_maps_of_the_pairs_alone(few_dims, monkeypatch, tmp_path, capsys):
    given = []

    def fit(key, x, y, num_restarts, config, *, pairs):
        given.append(pairs)
        return SimpleNamespace(best=SimpleNamespace(map=metrics.oracle(x, y[: len(x)], y)))

    monkeypatch.setattr(pairs, "align_restarts", fit)
    file = tmp_path / "out.json"
    arguments = ["--rows", "340", "--eval", "40", "--none", "--counts", "5,20", "--alone", "150", "--json", str(file)]
    found = pairs.main(arguments)["default"]
    assert [len(x_pairs) for x_pairs, _ in given] == [0, 5, 20]
    np.testing.assert_array_equal(given[1][0], given[2][0][:5])
    scores = found["scores"]
    assert set(scores["mv2v"]) == {0, 5, 20}
    assert set(scores["ridge"]) == {5, 20, 150}
    assert scores["Procrustes"][150]["foscttm"] < scores["Procrustes"][5]["foscttm"]
    # The "fit" of this test is made of rows that are no pairs.
    assert found["smallest_gain"] < -0.005
    assert f"{found['smallest_gain']:+.3f} at worst, with {found['with_pairs']} pairs" in capsys.readouterr().out


def test_a_problem_is_solved_from_a_count_on_if_every_larger_one_solves_it():
    counts = {count: {"foscttm": value} for count, value in ((5, 0.04), (20, 0.06), (100, 0.04), (1_000, 0.01))}
    assert pairs.first_solved(counts) == 100
    assert pairs.first_solved({5: {"foscttm": 0.2}}) is None
