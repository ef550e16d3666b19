"""The benchmarks run, judge and remember; on sizes that take seconds. Nothing here looks at a clock."""

import contextlib
import dataclasses
import importlib.util
import io
import itertools
import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load, save

from benchmarks import (
    ablation,
    common,
    consensus,
    device,
    growth,
    larger_than_memory,
    make_bundled,
    peers,
    planted,
    population,
    qap,
    quality,
    reference,
    restarts,
    roofline,
    scaling,
    selection,
    soak,
    speed,
    startup,
    verdict,
    work,
)
from mv2v_jax import Config, notebook
from mv2v_jax.alignment.score import Verdict
from mv2v_jax.cli import app
from mv2v_jax.evaluation import metrics
from mv2v_jax.ops.sharding import EVERYWHERE, ROW, all_gather, make_mesh, over_mesh, psum

# Compiling is the cost.
pytestmark = pytest.mark.usefixtures("quick_compile")

SETTINGS = reference.Settings(
    num_sets=6, num_clusters=8, anchor_rows=300, num_starts=4, num_neighbors=5, steps=8, refine_clusters=20
)
TINY = {"num_anchor_sets": 3, "num_clusters": 4, "lloyd_steps": 3, "num_starts": 2, "search_steps": 5, "kept_sets": 2}
PRESETS = {
    "notebook": lambda: dataclasses.replace(notebook(), **TINY, match_steps=2, cluster_steps=0),
    "fast": lambda: dataclasses.replace(Config(), **TINY, anneal_steps=1, csls_steps=0, whole_steps=0),
    "default": lambda: dataclasses.replace(Config(), **TINY, anneal_steps=1, csls_steps=0, whole_steps=1),
}
ROWS = ["--rows", "240", "--eval", "40"]


@pytest.fixture
def bundled(monkeypatch, tmp_path):
    """Only the bundled set is there, as for a stranger."""
    monkeypatch.setattr(common, "SHARED", tmp_path / "nowhere")


@pytest.fixture
def tiny(monkeypatch, bundled):
    """Presets and settings that compile and finish soon; the maps are worth nothing."""
    for module in (ablation, consensus, device, quality, restarts, speed):
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
    assert {name: len(runs) for name, runs in found["scores"].items()} == dict.fromkeys(
        ("reference", "notebook", "fast", "default"), 2
    )
    assert 0.1 < found["oracle"]["top1"] <= 1
    assert found["data"]["data"] == "bundled"
    out = capsys.readouterr().out
    assert "data: bundled" in out
    assert out.count("PASS") + out.count("FAIL") == 3
    assert out.count("not judged: default's") == 2


def test_quality_draws_a_curve_over_sizes(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(quality, "CURVE_EVAL", 40)
    file = tmp_path / "sizes.json"
    assert quality.main(["--sizes", "100", "--seeds", "2", "--json", str(file)]) == []
    found = json.loads(file.read_text())["sizes"]
    assert {size: run["data"]["rows"] for size, run in found.items()} == {"100": 240}
    assert {name: len(runs) for name, runs in found["100"]["scores"].items()} == {"reference": 2, "default": 2}
    assert "median top-1 of 2 seeds by rows a side, judged on 40" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="1,000,000 a side and 40 to judge are more than"):
        quality.main(["--sizes", "1000000"])
    for wrong in (["--sizes", "ten"], ["--sizes", "0"], ["--sizes", "100", "--rows", "240"]):
        with pytest.raises(SystemExit, match="2"):
            quality.main(wrong)


def test_quality_judges_medians_and_worst_seeds():
    def runs(*values):
        return [{"top1": value} for value in values]

    good = {"reference": runs(0.5, 0.6, 0.55), "notebook": runs(0.56, 0.2, 0.9), "default": runs(0.7, 0.68, 0.55)}

    def judged(scores, data=None):
        return [found["passed"] for found in quality.judge(scores, data or {})]

    assert judged(good) == [True, True, False, None, None]
    steady = {**good, "notebook": runs(0.53, 0.53, 0.53), "default": runs(0.54, 0.55, 0.56)}
    assert judged(steady) == [False, False, True, None, None]
    del steady["reference"]
    assert judged(steady) == [None, None, True, None, None]
    whole = {**quality.WHOLE, "data": "shared"}
    assert judged(good, whole)[3:] == [True, False]
    assert judged(steady, whole)[3:] == [False, False]
    assert judged(steady, {**whole, "rows": 59_999})[3:] == [None, None]


@pytest.mark.slow
def test_speed_times_every_stage(tiny, tmp_path):
    file = tmp_path / "speed.json"
    verdicts = speed.main([*ROWS, "--repeats", "1", "--presets", "default", "--json", str(file)])
    found = json.loads(file.read_text())
    assert list(found["whole"]) == ["reference", "default"]
    assert list(found["stages"]["default"]) == [
        "preprocess",
        "anchor sets",
        "initial map",
        "refine_annealed",
        "evidence",
        "refine_annealed_again",
        "refine_whole",
        "finish",
    ]
    assert max(run["mean_share"] for run in found["searches"].values()) <= 1
    assert all(verdict["passed"] is not None for verdict in verdicts)


def test_speed_asks_for_quality_as_well(capsys):
    whole = {"reference": {"steady": 100.0}, "fast": {"steady": 5.0, "compile": 20.0}}

    def passed(top1):
        scores = {"reference": {"top1": 0.5}, "fast": {"top1": top1}}
        return [verdict["passed"] for verdict in speed.judge("fast", whole, scores)]

    assert passed(0.5) == [True, False]
    assert passed(0.4) == [False, False]
    whole["fast"]["steady"] = 7.0
    assert passed(0.6) == [False, False]
    assert speed.judge("fast", {"fast": {"steady": 1.0, "compile": 1.0}}, {})[0]["passed"] is None


def test_startup_times_processes_and_their_cache(tmp_path, monkeypatch):
    file = tmp_path / "startup.json"
    commands = []

    def run(command, *, cwd, **_):
        commands.append(command)
        if "--compilation-cache" in command:
            cache = cwd / "cache"
            cache.mkdir(exist_ok=True)
            (cache / "entry").write_bytes(b"12345")
        assert np.load(cwd / "x.npy").shape[0] == 100
        said = json.dumps({"compile_seconds": 10.0 / len(commands) ** 2, "seconds": 1.0})
        return subprocess.CompletedProcess(command, 0, stdout=f"table\n{said}\n", stderr="")

    monkeypatch.setattr(startup.subprocess, "run", run)
    found = startup.main(["--rows", "100", "--json", str(file)])
    assert [times["compile"] for times in found.values()] == [10.0, 2.5, pytest.approx(10 / 9)]
    assert ["--compilation-cache" in command for command in commands] == [False, True, True]
    stored = json.loads(file.read_text())
    assert stored["cache_bytes"] == 5
    assert stored["requirement"]["passed"]


@pytest.mark.slow
def test_device_prints_stages_restarts_and_quality(tiny, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(device, "PRESETS", PRESETS)
    monkeypatch.setattr(device, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(device, "_NUM_EVAL", 50)
    sizes = ["--rows", "200", "--dimensions", "12", "--counts", "1,2", "--batch-sizes", "1,2", "--repeats", "1"]
    record = device.main([*sizes, "--presets", "default", "--json"])
    (file,) = (tmp_path / "results").iterdir()
    assert file.name.startswith("cpu-")
    assert json.loads(file.read_text()) == record
    found = record["presets"]["default"]
    assert [(run["restarts"], run["batch"]) for run in found["restarts"]] == [(1, 1), (2, 1), (2, 2)]
    assert found["restarts"][2]["temporary_bytes"] > found["restarts"][1]["temporary_bytes"] > 0
    # One at a time or side by side is the same.
    assert found["restarts"][2]["top1"] == pytest.approx(found["restarts"][1]["top1"], abs=0.1)
    assert {verdict["passed"] for verdict in record["requirements"]} == {None}
    assert "preprocess" in capsys.readouterr().out


def test_device_judges_an_h100_alone():
    runs = [{"restarts": 64, "steady": 20.0}, {"restarts": 64, "steady": 10.0}]
    assert [verdict["passed"] for verdict in device.judge(2.0, runs, True)] == [False, True]
    assert [verdict["passed"] for verdict in device.judge(0.5, [], True)] == [True, None]
    assert [verdict["passed"] for verdict in device.judge(0.5, runs, False)] == [None, None]


def make_fits(*, honest=True):
    """A population of 64 fits whose score tells the truth, but for the nulls that score well where not honest."""
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
                # Of other constants than those of now.
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


def test_selection_ranks_scores_of_a_stored_population(bundled, tmp_path, capsys):
    file = tmp_path / "selection.json"
    arguments = [*write_fits(tmp_path, make_fits()), "--restarts", "0", "--json", str(file)]
    assert [found["passed"] for found in selection.main(arguments)] == [True, None, True]
    found = json.loads(file.read_text())["population"]
    assert found[population.OWN_SCORE]["top-1"] == pytest.approx(1)
    assert found[population.OWN_SCORE]["-FOSCTTM, within"] == pytest.approx(1)
    assert found[population.OWN_SCORE]["AUROC"] == 1
    assert abs(found["noise"]["top-1"]) < 0.5
    assert found["constant"] == found["lost"] == dict.fromkeys(found["noise"]) | {"AUROC": 0.5}
    assert "minilm > wordllama (16), wordllama > minilm (16)" in capsys.readouterr().out
    dishonest = write_fits(tmp_path, make_fits(honest=False)[:32])
    assert [found["passed"] for found in selection.main([*dishonest, "--restarts", "0"])] == [False, None, False]
    with pytest.raises(SystemExit, match="restarts need the 60,000 texts"):
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
def test_selection_restarts_on_real_rows(tmp_path, monkeypatch, capsys):
    rng = np.random.default_rng(0)
    for name in common.BUNDLED_ENCODERS:
        np.save(tmp_path / f"wordnet.{name}.npy", rng.normal(size=(160, 6)).astype(np.float16))
    monkeypatch.setattr(population, "NUM_EVAL", 40)
    config = dataclasses.replace(PRESETS["default"](), num_clusters=3)
    data_set = population.Condition("tiny", *common.BUNDLED_ENCODERS, rows=60, offset=0, config=config)
    monkeypatch.setattr(selection, "RESTARTED", (data_set,))
    file = tmp_path / "selection.json"
    arguments = ["--data", str(tmp_path), "--restarts", "2", "--json", str(file)]
    verdicts = selection.main([*write_fits(tmp_path, make_fits()), *arguments])
    assert verdicts[1]["passed"] is not None
    found = json.loads(file.read_text())["restarts"]["tiny @ 0"]
    assert len(found["fits"]) == 2
    assert set(found["regret"]) == {*found["fits"][0]["scores"], "one at random, on average"}
    assert len(found["regret"]) == 11
    assert "tiny @ 0: top-1 of the restarts" in capsys.readouterr().out


def test_verdict_judges_stored_evidence_anew(bundled, tmp_path, monkeypatch, capsys):
    file = tmp_path / "verdict.json"
    arguments = ["--json", str(file), "--calibrate"]
    verdicts = verdict.main([*write_fits(tmp_path, make_fits()), *arguments])
    found = json.loads(file.read_text())
    report = found["parts"]["report"]
    assert (report["fits"], report["conditions"], report["nulls"], report["nulls_aligned"]) == (32, 32, 8, 0)
    assert sum(sum(row.values()) for row in report["counts"].values()) == report["fits"]
    assert sum(row["fits"] for row in report["reliability"]) == report["fits"]
    assert report["auroc"] == 1
    # What is stored was left behind.
    assert {fit["verdict"] for fit in found["fits"]} >= {Verdict.aligned, Verdict.not_aligned}
    assert [verdicts[i]["passed"] for i in (0, 1, 3)] == [True, True, True]
    out = capsys.readouterr().out
    assert "_SCORE_MIDPOINT, _SCORE_SLOPE = " in out
    assert f"_TOP1_OFFSET, _TOP1_CLOSENESS, _TOP1_LOG_ROWS = {found['calibrated']['top1_offset']:.2f}, " in out
    assert "…" not in out

    verdicts = verdict.main(write_fits(tmp_path, make_fits(honest=False)))
    assert [verdicts[i]["passed"] for i in (0, 1)] == [False, False]
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


def test_verdict_plots_reliability(bundled, tmp_path, monkeypatch):
    file = tmp_path / "reliability.png"
    arguments = [*write_fits(tmp_path, make_fits()), "--plot", str(file)]
    if importlib.util.find_spec("matplotlib") is None:
        with pytest.raises(SystemExit, match="--plot needs matplotlib"):
            verdict.main(arguments)
    else:
        verdict.main(arguments)
        assert file.read_bytes().startswith(b"\x89PNG")


def test_ablation_changes_one_choice_at_a_time(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(ablation, "SMALL_ROWS", 240)
    monkeypatch.setattr(ablation, "SMALL_EVAL", 40)
    # Choices that differ in a float share a compilation, which is what takes time here.
    choices = {name: ablation.CHOICES[name] for name in ("default", "no whitening")}
    monkeypatch.setattr(ablation, "CHOICES", choices)
    file = tmp_path / "ablation.json"
    found = ablation.main(["--small", "--seeds", "2", "--json", str(file)])
    assert {name: len(runs) for name, runs in found["few rows"].items()} == dict.fromkeys(choices, 2)
    assert found["few rows"]["no whitening"][0]["mean_rank"] != found["few rows"]["default"][0]["mean_rank"]
    assert json.loads(file.read_text())["sizes"]["few rows"]["data"]["eval"] == 40
    assert "few rows, 100 a side" in capsys.readouterr().out


@pytest.mark.slow
def test_restarts_are_counted(tiny, tmp_path, capsys):
    file = tmp_path / "restarts.json"
    found = restarts.main(["--rows", "240", "--eval", "40", "--counts", "1,2", "--seeds", "2", "--json", str(file)])
    assert {count: len(runs) for count, runs in found.items()} == {1: 2, 2: 2}
    assert {run["verdict"] for run in found[1]} <= {"uncertain", "not_aligned"}
    assert all(run["seconds"] > 0 for runs in found.values() for run in runs)
    assert json.loads(file.read_text())["data"]["eval"] == 40
    assert "100 rows a side, 2 seeds" in capsys.readouterr().out
    assert json.loads(file.read_text())["requirement"]["passed"] is None
    assert restarts.judge({1: [{"seconds": 2.0}], 8: [{"seconds": 7.0}]})["passed"]
    assert not restarts.judge({1: [{"seconds": 2.0}], 8: [{"seconds": 9.0}]})["passed"]
    with pytest.raises(SystemExit):
        restarts.main(["--counts", "2,0"])


@pytest.mark.slow
def test_a_consensus_is_compared(tiny, tmp_path, capsys):
    file = tmp_path / "consensus.json"
    arguments = ["--rows", "240", "--eval", "40", "--restarts", "3", "--seeds", "1", "--json", str(file)]
    (run,) = consensus.main(arguments)
    assert sum(run["basins"]) == 3
    assert all(0 <= run[name] <= 1 for name in consensus.METHODS)
    record = json.loads(file.read_text())
    assert record["runs"] == [run]
    assert len(record["requirements"]) == 2
    assert "top-1, 100 rows a side, 3 restarts" in capsys.readouterr().out
    gains = [{"chosen alone": 0.5, "consensus": top1} for top1 in (0.497, 0.52)]
    assert [found["passed"] for found in consensus.judge(gains)] == [True, True]
    assert [found["passed"] for found in consensus.judge([{"chosen alone": 0.5, "consensus": 0.49}])] == [False, False]
    with pytest.raises(SystemExit):
        consensus.main(["--restarts", "1"])


def test_ablation_choices_are_choices():
    default = Config()
    for name, changes in ablation.CHOICES.items():
        changed = dataclasses.replace(default, **changes)
        assert (changed != default) == (name != "default"), name


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


def test_what_moves_is_counted_in_the_compiled_program():
    mesh = make_mesh(1, row_devices=4, devices=jax.devices()[:4])

    def fun(x):
        return psum(x, ROW), all_gather(x[:2], ROW, 8)

    compiled = jax.jit(over_mesh(fun, mesh, EVERYWHERE)).lower(jnp.ones((3, 5))).compile()
    # Around a ring an array that is summed goes nearly twice, one that is gathered nearly once.
    moved, collectives = scaling.count_moved(compiled.as_text(), 4)
    assert (moved, collectives) == (2 * 3 / 4 * 15 * 4 + 3 / 4 * 8 * 5 * 4, 2)


def test_scaling_predicts_by_what_is_computed_and_moved():
    devices = {"1": {"limit": 2.0}, "8": {"limit": 0.5, "bytes": 1e6, "collectives": 3}}
    found = scaling.predict({"step": {"times": 10, "devices": devices}}, {"step": 4.0}, 8, bandwidth=1e9, latency=1e-3)
    assert found == {"step": pytest.approx(10 * (1.0 + 1e-3 + 3e-3))}


def test_memory_is_watched_while_a_command_runs(tmp_path):
    wait = "time.sleep(0.5)"
    script = f"import sys, time, pathlib; {wait}; pathlib.Path(sys.argv[1], 'restarts-0.safetensors').touch(); {wait}"
    seen = dict(soak.watch([sys.executable, "-c", script, str(tmp_path)], tmp_path))
    assert sorted(seen) == [0, 1]
    assert all(2**20 < resident < 2**30 for resident in seen.values())


@pytest.mark.slow
def test_roofline_says_every_stage(tiny, capsys, monkeypatch):
    monkeypatch.setattr(roofline, "PRESETS", PRESETS)
    monkeypatch.setattr(roofline, "_PEAK_SIZE", 64)
    monkeypatch.setattr(roofline, "_COPY_ENTRIES", 1_000)
    verdicts = roofline.main([*ROWS, "--repeats", "1", "--presets", "default"])
    printed = capsys.readouterr().out
    for stage in ("preprocess", "anchor sets", "initial map", "refine_annealed", "evidence", "refine_whole", "all"):
        assert stage in printed
    assert len(verdicts) == 2


def test_limit_is_the_longer_of_computing_and_moving():
    peaks = {"flop_per_second": 10.0, "half_flop_per_second": 20.0, "bytes_per_second": 2.0}
    assert roofline.limit_seconds(work.Work(matmul_flop=100, decomposition_flop=20, bytes=4), peaks) == 12
    assert roofline.limit_seconds(work.Work(matmul_flop=100, bytes=40), peaks) == 20
    assert roofline.limit_seconds(work.Work(matmul_flop=100, half_flop=60, bytes=4), peaks) == 13


def test_work_tells_half_precision_apart(rng):
    a = jnp.asarray(rng.standard_normal((30, 20)), jnp.bfloat16)
    found = work.count_work(lambda a: a @ a.T, a)
    assert (found.half_flop, found.matmul_flop) == (2 * 30 * 20 * 30, 0)


def test_planted_spaces_can_be_written_and_have_the_pairs_they_say(tmp_path):
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


def test_planted_shards_have_the_mean_they_say_and_judge_nothing(tmp_path):
    spaces = planted.plant(3, 20)
    mean = planted.write_shards(tmp_path / "x", spaces, 3, 50, 4, 0, "float16")
    shards = [np.load(path) for path in sorted((tmp_path / "x").iterdir())]
    assert [len(shard) for shard in shards] == [12, 13, 12, 13]
    rows = np.concatenate(shards)
    np.testing.assert_allclose(mean, rows.mean(0, dtype=np.longdouble), rtol=1e-12)
    pairs, _ = planted.draw_pairs(spaces, 3, 50)
    assert np.linalg.norm(rows[:, None] - pairs[None], axis=2).min() > 0.1
    assert len(np.unique(rows, axis=0)) == 50


@pytest.mark.slow
def test_larger_than_memory_runs_both_commands_and_judges_them(monkeypatch, capsys, tmp_path):
    def run_here(*arguments):
        with contextlib.redirect_stdout(io.StringIO()) as out:
            app.app.main([str(argument) for argument in arguments], standalone_mode=False)
        return {"printed": out.getvalue(), "wall_seconds": 1.0, "peak_bytes": 2**31}

    monkeypatch.setattr(larger_than_memory, "run_command", run_here)
    monkeypatch.setattr(app, "PRESETS", PRESETS)
    arguments = ["--rows", "300", "--dimensions", "16", "--shards", "3", "--apply-rows", "700", "--preset", "fast"]
    record = larger_than_memory.main([*arguments, "--folder", str(tmp_path)])
    assert record["align"]["n"] == 300
    assert record["apply"]["rows"] == 700
    assert [found["passed"] for found in record["requirements"]] == [True, False, True, True]
    assert "PASS: align under 4 GiB resident: 2.00" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_a_command_that_fails_is_told_and_its_memory_is_its_own(tmp_path):
    found = larger_than_memory.run_command("--version")
    assert "0.1.0" in found["printed"]
    assert 2**25 < found["peak_bytes"] < 2**36
    with pytest.raises(SystemExit, match=r"mv2v info ended with 2: Error: .*none\.safetensors"):
        larger_than_memory.run_command("info", tmp_path / "none.safetensors")


@pytest.mark.slow
def test_growth_fits_files_and_prints_exponents(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(growth, "PRESETS", PRESETS)
    monkeypatch.setattr(growth, "_fit_in_child", growth.fit_files)
    runs = growth.main(["--sizes", "200,400", "--dimensions", "16", "--presets", "fast", "--folder", str(tmp_path)])
    assert [run["rows"] for run in runs] == [200, 400]
    assert [run["input_bytes"] for run in runs] == [2 * 200 * 16 * 4, 2 * 400 * 16 * 4]
    assert "steady seconds grow as n^" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_growth_exponent():
    assert growth.exponent([10, 100, 1_000], [3.0, 300.0, 30_000.0]) == pytest.approx(2)


@pytest.fixture
def tiny_peers(monkeypatch, tiny):
    """Every peer in this process instead of a child, in few steps."""

    def run_here(command, **_):
        assert command[1:3] == ["-m", "benchmarks.peers"]
        with contextlib.redirect_stdout(io.StringIO()) as out:
            assert peers.main(command[3:]) == []
        return subprocess.CompletedProcess(command, 0, stdout=out.getvalue())

    monkeypatch.setattr(peers.subprocess, "run", run_here)
    monkeypatch.setattr(peers, "PRESETS", PRESETS)
    monkeypatch.setattr(peers, "WASSERSTEIN", dataclasses.replace(SETTINGS, num_clusters=4, step_rows=60))
    monkeypatch.setattr(peers, "GROMOV_STEPS", 5)


@pytest.mark.slow
def test_peers_in_one_table(tiny_peers, tmp_path, capsys):
    pytest.importorskip("ot")
    pytest.importorskip("ott")
    file = tmp_path / "peers.json"
    # Both presets go the same way, and compiling is what takes time here.
    methods = [name for name in peers.METHODS if name != "default"]
    arguments = ["--methods", ",".join(methods), "--wp-steps", "2", "--gw-rows", "50", "--json", str(file)]
    verdicts = peers.main([*ROWS, *arguments])
    found = json.loads(file.read_text())
    assert list(found["runs"]) == methods
    for name, run in found["runs"].items():
        assert run["rows"] == (50 if name in ("pot", "ott") else 100)
        assert 0 <= run["scores"]["top1"] <= 1
        assert run["peak_bytes"] > 0
        assert (run["compile_seconds"] is not None) == (name in ("ott", "muse", *peers.OURS))
        assert (run["missing_seconds"] > 0) == (name == "wasserstein")
    assert found["runs"]["wasserstein"]["steps"] == [2, 8]
    assert {"pot", "ott-jax"} <= set(found["environment"])
    out = capsys.readouterr().out
    assert "…" not in out
    assert "Wasserstein Procrustes ran 2 of 8 steps" in out
    assert [verdict["passed"] is None for verdict in verdicts] == [False, True]


def test_peers_can_be_chosen_and_missing_ones_are_named(tiny_peers, monkeypatch, capsys):
    arguments = [*ROWS, "--wp-steps", "99", "--methods"]
    assert [verdict["passed"] for verdict in peers.main([*arguments, "wasserstein"])] == [None, None]
    out = capsys.readouterr().out
    assert "extrapolated" not in out
    assert "POT" not in out
    monkeypatch.setattr(peers.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match=r"OTT-JAX needs the package ott-jax: pip install 'mv2v_jax\[bench\]'"):
        peers.main([*arguments, "ott"])
    for wrong in (["--methods", "none"], ["--wp-steps", "0"]):
        with pytest.raises(SystemExit, match="2"):
            peers.main(wrong)


def test_peers_judge_the_whole_of_wasserstein_procrustes():
    def run(seconds, top1, missing=0.0):
        steps = [3, 100] if missing else None
        return {"seconds": seconds, "missing_seconds": missing, "steps": steps, "scores": {"top1": top1}}

    def judged(**runs):
        return [verdict["passed"] for verdict in peers.judge(runs)]

    peer = run(100.0, 0.6, missing=1_900.0)
    assert judged(wasserstein=peer, fast=run(10.0, 0.6), default=run(10.1, 0.7)) == [True, False]
    assert judged(wasserstein=peer, fast=run(1.0, 0.59)) == [False, None]
    assert judged(fast=run(1.0, 0.9), default=run(1.0, 0.9)) == [None, None]


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


def test_peers_gromov_wasserstein_solve_the_same_problem(rng, monkeypatch):
    pytest.importorskip("ot")
    pytest.importorskip("ott")
    monkeypatch.setattr(peers, "GROMOV_EPSILON", 0.05)
    x, y, _ = make_pairs(rng, 30)
    plan, compiling = peers.solve_ott(x.astype(np.float32), y[::-1].astype(np.float32))
    assert compiling > 0
    # Far from the uniform plan that both start from.
    assert plan.max() > 2 / 30**2
    np.testing.assert_allclose(plan, peers.solve_pot(x, y[::-1])[0], atol=1e-4)
