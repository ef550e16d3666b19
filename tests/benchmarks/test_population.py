"""Scores and verdicts are compared with the truth of stored fits."""

import importlib.util
import json

import numpy as np
import pytest

from benchmarks import common, population, selection, verdict
from mv2v_jax import Verdict

pytestmark = pytest.mark.usefixtures("quick_compile")


def make_fits(*, honest=True):
    """A population of 64 fits whose score tells the truth; if not honest, the nulls score well all the same."""
    rng = np.random.default_rng(0)
    fits = []
    for number in range(64):
        name = ("minilm > wordllama, 3,000", "wordllama > minilm, Gaussian", "minilm > view", "wordllama > view")[
            number // 2 % 4
        ]
        null = "Gaussian" in name
        top1 = 0.001 if null else rng.uniform(0, 0.8)
        score = 0.8 if null and not honest else 0.2 + 0.6 * top1
        num_rows = (300, 600)[number // 8 % 2]
        # Top-1 is a logistic curve of this and of the number of rows.
        closeness = (np.log(top1 / (1 - top1)) + 8 - 0.5 * np.log(num_rows)) / 12
        fits.append(
            {
                "condition": name,
                "number": number,
                "offset": 20_000,
                "seed": 0,
                "part": ("report", "calibrate")[number % 2],
                "truth": {"top1": top1, "foscttm": 0.5 * (1 - top1) ** 5},
                "evidence": {"cross": 0.5, "within": 0.6, "null": 0.1, "null_deviation": 0.01, "num_rows": num_rows}
                | {"closeness": closeness, "anchor_agreement": 0.8, "score": score},
                "agreement": 0.9,
                "scores": {population.OWN_SCORE: score, "noise": rng.normal(), "constant": 1.0, "lost": float("nan")},
                # From other constants than the present ones.
                "verdict": 0,
                "confidence": 0.5,
                "estimated_top1": 0.9,
            }
        )
    return fits


def write_fits(folder, fits):
    file = folder / "fits.json"
    file.write_text(json.dumps({"fits": fits}))
    return ["--fits", str(file)]


def test_a_population_needs_data():
    with pytest.raises(SystemExit, match="needs 60,000 texts"):
        population.main([])


def test_conditions_are_fitted_with_configs_of_their_own():
    listed = population.conditions(with_lsa=True)
    weak = {condition.config.annealing.power for condition in listed if "no weights" in condition.name}
    assert weak == {0.0}
    parts = {population.part_of(condition.name, condition.offset) for condition in listed}
    assert parts == set(verdict.PARTS)


def test_selection_ranks_scores_of_a_stored_population(tmp_path, capsys):
    file = tmp_path / "selection.json"
    arguments = [*write_fits(tmp_path, make_fits()), "--restarts", "0", "--json", str(file)]
    selection.main(arguments)
    found = json.loads(file.read_text())["population"]
    assert found[population.OWN_SCORE]["top-1"] == pytest.approx(1)
    assert found[population.OWN_SCORE]["-FOSCTTM, within"] == pytest.approx(1)
    assert found[population.OWN_SCORE]["AUROC"] == 1
    assert abs(found["noise"]["top-1"]) < 0.5
    assert found["constant"] == found["lost"] == dict.fromkeys(found["noise"]) | {"AUROC": 0.5}
    assert "minilm > wordllama (16), wordllama > minilm (16)" in capsys.readouterr().out
    dishonest = write_fits(tmp_path, make_fits(honest=False)[:32])
    found = selection.main([*dishonest, "--restarts", "0"])
    assert found["population"][population.OWN_SCORE]["top-1"] < 0.9
    assert len(found["fits"]) == 32
    with pytest.raises(SystemExit, match="restarts need 60,000 texts"):
        selection.main(dishonest)


def test_selection_groups_by_pair_and_leaves_small_groups_out():
    names = ["a > b, 3,000", "a > b, 1,500", "a > b", "a > b, Gaussian", "b > a, 3,000", "b > a", "b > a"]
    assert {
        name: len(fits) for name, fits in selection.group_fits([{"condition": name} for name in names]).items()
    } == {"a > b": 4}


def test_selection_regrets_what_the_best_score_loses():
    fits = [
        {"truth": {"top1": top1}, "scores": {"good": good, "bad": bad}}
        for top1, good, bad in ((0.5, 1.0, 9.0), (0.7, 2.0, float("nan")), (0.6, 1.5, 3.0))
    ]
    assert selection.regrets(fits) == pytest.approx({"good": 0, "bad": 0.2, "one at random, on average": 0.1})


@pytest.mark.slow
def test_selection_restarts_on_rows_of_a_folder(tiny, tmp_path, monkeypatch, capsys):
    rng = np.random.default_rng(0)
    for name in common.BUNDLED_ENCODERS:
        np.save(tmp_path / f"wordnet.{name}.npy", rng.normal(size=(160, 6)).astype(np.float16))
    monkeypatch.setattr(population, "NUM_EVAL", 40)
    config = tiny["default"].replace(anchors={"num_clusters": 3})
    data_set = population.Condition("tiny", *common.BUNDLED_ENCODERS, rows=60, offset=0, config=config)
    monkeypatch.setattr(selection, "RESTARTED", (data_set,))
    file = tmp_path / "selection.json"
    arguments = ["--data", str(tmp_path), "--restarts", "2", "--json", str(file)]
    selection.main([*write_fits(tmp_path, make_fits()), *arguments])
    found = json.loads(file.read_text())["restarts"]["tiny @ 0"]
    assert len(found["fits"]) == 2
    assert set(found["regret"]) == {*found["fits"][0]["scores"], "one at random, on average"}
    assert len(found["regret"]) == 11
    assert found["regret"][population.OWN_SCORE] >= 0
    assert "tiny @ 0: top-1 of the restarts" in capsys.readouterr().out


def test_verdict_judges_stored_evidence_anew(tmp_path, capsys):
    file = tmp_path / "verdict.json"
    arguments = ["--json", str(file), "--calibrate"]
    verdict.main([*write_fits(tmp_path, make_fits()), *arguments])
    found = json.loads(file.read_text())
    report = found["parts"]["report"]
    assert (report["fits"], report["conditions"], report["nulls"], report["nulls_aligned"]) == (32, 32, 8, 0)
    assert sum(sum(row.values()) for row in report["counts"].values()) == report["fits"]
    assert sum(row["fits"] for row in report["reliability"]) == report["fits"]
    assert report["auroc"] == 1
    # The stored verdicts are replaced.
    assert {fit["verdict"] for fit in found["fits"]} >= {Verdict.aligned, Verdict.not_aligned}
    out = capsys.readouterr().out
    assert "SCORE_MIDPOINT, _SCORE_SLOPE = " in out
    assert f"_TOP1_OFFSET, _TOP1_CLOSENESS, _TOP1_LOG_ROWS = {found['calibrated']['top1_offset']:.2f}, " in out
    assert "…" not in out

    report = verdict.main(write_fits(tmp_path, make_fits(honest=False)))["parts"]["report"]
    assert report["auroc"] < 0.97
    assert report["nulls_aligned"] > 0
    with pytest.raises(SystemExit, match="both parts need fits, found 0 to calibrate, 32 to report"):
        verdict.main(write_fits(tmp_path, [fit for fit in make_fits() if fit["part"] == "report"]))


def test_verdict_calibrates_on_one_part_alone():
    fits = make_fits()
    found = verdict.calibrate(fits)
    # FOSCTTM is 0.05 at a top-1 of 0.369, a score of 0.421.
    assert found.score_midpoint == pytest.approx(0.421, abs=0.05)
    assert found.score_slope > 20
    assert 0 <= found.agreement_midpoint < 0.9
    # The confidence is a factor of the estimate, and not quite one.
    assert found.top1_closeness == pytest.approx(12, rel=0.2)
    assert found.top1_log_rows == pytest.approx(0.5, abs=0.2)
    for closeness, num_rows, top1 in ((0.45, 300, 0.56), (0.48, 600, 0.72)):
        estimate = found.top1_offset + found.top1_closeness * closeness + found.top1_log_rows * np.log(num_rows)
        assert 1 / (1 + np.exp(-estimate)) == pytest.approx(top1, abs=0.05)
    for fit in fits:
        if fit["part"] == "report":
            fit["evidence"] = dict.fromkeys(fit["evidence"], 1.0)
    assert verdict.calibrate(fits) == found
    with pytest.raises(SystemExit, match="cannot calibrate on 0 successes"):
        verdict.calibrate([fit for fit in fits if not selection.succeeded(fit)])


def test_verdict_bins_hold_every_confidence():
    rows = [(0.0, 0.5), (0.19, 0.5), (0.2, 0.01), (0.99, 0.01), (1.0, 0.5)]
    fits = [{"confidence": confidence, "truth": {"foscttm": foscttm}} for confidence, foscttm in rows]
    bins = verdict.bin_reliability(fits)
    assert [found.fits for found in bins] == [2, 1, 0, 0, 2]
    assert [found.success for found in bins] == [0, 1, None, None, 0.5]
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
