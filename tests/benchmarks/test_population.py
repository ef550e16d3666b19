"""Scores and verdicts are compared with the truth of stored fits, and the population makes what it says."""

import importlib.util
import json

import numpy as np
import pytest

from benchmarks import common, planted_kinds, population, selection, verdict
from mv2v_jax import Config, Reason, Verdict


def make_fits(*, honest=True):
    """A population of 96 fits whose evidence tells the truth; if not honest, wrong maps look as good as right ones."""
    rng = np.random.default_rng(0)
    fits = []
    for number in range(96):
        corpus, other = (("a", "b", "c")[number % 3], ("d", "e")[number // 3 % 2])
        right = number // 6 % 2 == 0
        good = right or not honest
        fine = rng.uniform(0.3, 0.5) if good else rng.uniform(0.0, 0.05)
        closeness = [fine + 0.3, fine + 0.25, fine + 0.1, fine]
        # Top-1 is a logistic curve of the closeness of the third scale.
        top1 = 1 / (1 + np.exp(5.0 + 6.0 * np.log(1 - closeness[2]) - 0.4 * np.log(300))) if right else 0.001
        evidence = {
            "cross": 0.5,
            "cross_each": [0.5, 0.5],
            "within": 0.6,
            "null": [0.1] * 4,
            "null_deviation": [0.01] * 4,
            "closeness": closeness,
            "local_structure": 0.8,
            "local_closeness": 0.5,
            "symmetry": 1.5,
            "distinct": 1.0,
            "num_rows": 300,
            "score": fine + 0.1,
        }
        fits.append(
            {
                "condition": f"number {number}",
                "kind": "pairs" if right else "other domain",
                "corpora": [corpus],
                "encoders": [other],
                "rows": 3_000,
                "seed": 0,
                "truth": {"top1": top1, "foscttm": 0.001 if right else 0.4},
                "oracle": {"top1": 0.9},
                "is": "right" if right else "wrong",
                "chosen": 1,
                # Of two restarts, the second of which was chosen.
                "evidence": {name: [np.zeros_like(value).tolist(), value] for name, value in evidence.items()},
                "agreement": 0.9 if good else 0.05,
                "searched_top1": [0.0, top1],
                "recalls": [{"num_found": 1, "index_size": 2_000, "recall": [top1, top1]}],
            }
        )
    return fits


def write_fits(folder, fits):
    file = folder / "fits.json"
    file.write_text(json.dumps({"fits": fits}))
    return ["--fits", str(file)]


def test_a_population_needs_data(tmp_path):
    with pytest.raises(SystemExit, match="needs embeddings of several corpora"):
        population.main([])
    with pytest.raises(SystemExit, match="no such folder"):
        population.main(["--data", str(tmp_path / "nowhere")])


def test_conditions_have_names_of_their_own_and_every_kind_of_truth():
    listed = population.conditions()
    assert len({condition.name for condition in listed}) == len(listed) >= 120
    assert {condition.truth for condition in listed} == {"pairs", "ambiguous", "none"}
    assert {name for condition in listed for name in condition.corpora} == {"wordnet", "web", "captions"}


@pytest.mark.parametrize("group", ["ALIGNABLE", "AMBIGUOUS", "WRONG"])
def test_planted_clouds_are_finite_and_of_one_width(group):
    for name, kind in getattr(planted_kinds, group).items():
        source, target = kind(np.random.default_rng(0), 60)
        assert source.shape == target.shape == (60, planted_kinds.DIMS), name
        assert np.isfinite(source).all(), name
        assert np.isfinite(target).all(), name


def test_planted_maps_are_the_best_map_of_the_pairs():
    source, target = planted_kinds.ALIGNABLE["dictionary, noise 0.2"](np.random.default_rng(0), 800)
    split = population.protocol(source.astype(np.float32), target.astype(np.float32), num_eval=100)
    assert common.evaluate_oracle(split)["top1"] > 0.9
    source, target = planted_kinds.WRONG["unrelated dictionaries"](np.random.default_rng(0), 800)
    split = population.protocol(source.astype(np.float32), target.astype(np.float32), num_eval=100)
    assert common.evaluate_oracle(split)["top1"] < 0.1


@pytest.mark.slow
def test_a_population_keeps_its_maps_and_finds_the_same_evidence_again(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(population, "NUM_EVAL", 40)
    monkeypatch.setattr(Config, "fast", classmethod(lambda cls: tiny["default"].replace(anchors={"num_clusters": 3})))
    load = population.planted(planted_kinds.ALIGNABLE["dictionary, noise 0.2"], 60, 0)
    condition = population.Condition("tiny", "planted, alignable", load, frozenset(), frozenset())
    first, again = (list(population.run(tmp_path, [condition], tmp_path)) for _ in range(2))
    assert len(list(tmp_path.glob("*.npz"))) == 1
    assert json.dumps(first, sort_keys=True) == json.dumps(again, sort_keys=True)
    assert len(first[0]["evidence"]["closeness"]) == population.NUM_RESTARTS


def test_selection_ranks_scores_of_a_stored_population(tmp_path, capsys):
    file = tmp_path / "selection.json"
    selection.main([*write_fits(tmp_path, make_fits()), "--json", str(file)])
    found = json.loads(file.read_text())
    assert found["population"]["closeness, finer half"]["AUROC"] == 1
    assert found["population"]["agreement of restarts"]["AUROC"] == 1
    assert found["population"]["nearest cosine"]["AUROC"] == 0.5
    # The first restart has neither evidence nor rows that find their partners.
    assert found["regret"]["closeness, finer half"] == 0
    assert found["regret"]["one at random"] > 0.1
    assert "48 right and 48 wrong maps" in capsys.readouterr().out


def test_verdict_judges_stored_evidence_anew(tmp_path, capsys):
    file = tmp_path / "verdict.json"
    verdict.main([*write_fits(tmp_path, make_fits()), "--json", str(file), "--calibrate"])
    found = json.loads(file.read_text())
    counts = found["summaries"]["all fits"]["counts"]
    assert counts["right"] == {"not_aligned": 0, "uncertain": 0, "aligned": 48}
    assert counts["wrong"]["aligned"] == 0
    assert set(found["summaries"]) >= {"without a", "without d", "left out, all corpora", "left out, all encoders"}
    left_out = found["summaries"]["left out, all corpora"]
    assert left_out["fits"] == 96
    assert left_out["estimate_within"] == 1
    assert {fit["reason"] for fit in found["fits"]} >= {Reason.restarts_agree_at_every_scale.value}
    out = capsys.readouterr().out
    assert "closeness_midpoint=" in out
    assert "…" not in out
    found = verdict.main(write_fits(tmp_path, make_fits(honest=False)))
    assert found["summaries"]["all fits"]["counts"]["wrong"]["aligned"] == 48


def test_verdict_calibrates_between_right_and_wrong_maps():
    fits = make_fits()
    found = verdict.calibrate(fits)
    assert 0.05 < found.closeness_midpoint < 0.3
    assert 0.05 < found.agreement_midpoint < 0.9
    again = verdict.judge_again(fits, found)
    errors = [fit["estimated_top1"] - fit["truth"]["top1"] for fit in again if fit["is"] == "right"]
    assert np.abs(errors).max() < 0.05
    with pytest.raises(SystemExit, match="cannot calibrate on 0 right"):
        verdict.calibrate([fit for fit in fits if fit["is"] == "wrong"])


def test_verdict_bins_hold_every_confidence():
    rows = [(0.0, "right"), (0.19, "wrong"), (0.2, "right"), (0.99, "right"), (1.0, "wrong")]
    bins = verdict.bin_reliability([{"confidence": confidence, "is": truth} for confidence, truth in rows])
    assert [found.fits for found in bins] == [2, 1, 0, 0, 2]
    assert [found.right for found in bins] == [0.5, 1, None, None, 0.5]
    assert bins[4].confidence == pytest.approx(0.995)


def test_verdict_plots_reliability(tmp_path):
    file = tmp_path / "reliability.png"
    arguments = [*write_fits(tmp_path, make_fits()), "--plot", str(file)]
    if importlib.util.find_spec("matplotlib") is None:
        with pytest.raises(SystemExit, match="--plot needs matplotlib"):
            verdict.main(arguments)
    else:
        verdict.main(arguments)
        assert file.read_bytes().startswith(b"\x89PNG")


def test_every_verdict_is_counted():
    judged = verdict.judge_again(make_fits())
    counts = verdict.summarise(judged)["counts"]
    assert sum(sum(row.values()) for row in counts.values()) == len(judged)
    assert {fit["verdict"] for fit in judged} == {Verdict.aligned, Verdict.not_aligned}
