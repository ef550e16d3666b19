"""The benchmarks of fits run and record, on sizes that take seconds. No test depends on measured times."""

import contextlib
import io
import json
import subprocess
from pathlib import Path

import numpy as np
import pytest

from benchmarks import (
    ablation,
    consensus,
    device,
    growth,
    larger_than_memory,
    predict,
    quality,
    restarts,
    roofline,
    scaling,
    speed,
    startup,
)
from benchmarks.work import Work
from mv2v_jax import Config, __version__
from mv2v_jax.cli import cli

# Compiling is the cost.
pytestmark = pytest.mark.usefixtures("shared_compilations")

ROWS = ["--rows", "240", "--eval", "40"]
# Of the tiny default preset.
STAGES = ["preprocess", "anchors", "first estimate", "refine_annealed", "evidence", "choose", "extend"]
STAGES += ["refine_annealed_again", "refine_whole", "polish", "finish"]


@pytest.mark.slow
def test_quality_runs_on_the_bundled_rows(tiny, tmp_path, capsys):
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
    assert out.count("default, worst") == 1


@pytest.mark.slow
def test_quality_draws_a_curve_over_sizes(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(quality, "CURVE_EVAL", 40)
    file = tmp_path / "sizes.json"
    quality.main(["--sizes", "100", "--seeds", "2", "--json", str(file)])
    found = json.loads(file.read_text())["sizes"]
    assert {size: run["data"]["rows"] for size, run in found.items()} == {"100": 240}
    assert {name: len(runs) for name, runs in found["100"]["scores"].items()} == {"reference": 2, "default": 2}
    assert "median top-1 of 2 seeds by rows per space, evaluated on 40" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="1,000,000 rows per space and 40 to evaluate on are more than"):
        quality.main(["--sizes", "1000000"])
    for wrong in (["--sizes", "ten"], ["--sizes", "0"], ["--sizes", "100", "--rows", "240"]):
        with pytest.raises(SystemExit, match="2"):
            quality.main(wrong)


def test_quality_shows_medians_and_worst_seeds():
    def runs(*top1):
        return [{**dict.fromkeys(quality.METRICS, 0.0), "top1": value, "seconds": 1.0} for value in top1]

    rows = quality.summarise({"reference": runs(0.5, 0.6, 0.55), "default": runs(0.7, 0.68, 0.5)})
    shown = {row[0]: (row[1], row[-1]) for row in rows}
    assert shown["reference, median"] == ("0.550", "+0.000")
    assert shown["default, median"] == ("0.680", "+0.130")
    assert shown["default, worst"] == ("0.500", "-0.050")
    assert quality.summarise({"default": runs(0.5)})[0][-1] == ""


@pytest.mark.slow
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
    assert "few rows, 100 per space" in capsys.readouterr().out


def test_ablation_choices_are_choices():
    default = Config()
    for name, changes in ablation.CHOICES.items():
        assert (default.replace(**changes) != default) == (name != "default"), name


@pytest.mark.slow
def test_speed_times_every_stage(tiny, tmp_path, capsys):
    file = tmp_path / "speed.json"
    speed.main([*ROWS, "--repeats", "1", "--presets", "default", "--json", str(file)])
    found = json.loads(file.read_text())
    assert list(found["whole"]) == ["reference", "default"]
    assert list(found["stages"]["default"]) == STAGES
    assert max(run["mean_share"] for run in found["searches"].values()) <= 1
    assert "of the reference" in capsys.readouterr().out


def test_roofline_counts_every_stage(tiny, capsys, monkeypatch):
    monkeypatch.setattr(roofline, "_PEAK_SIZE", 64)
    monkeypatch.setattr(roofline, "_COPY_ENTRIES", 1_000)
    found = roofline.main([*ROWS, "--repeats", "1", "--presets", "default"])["presets"]["default"]
    printed = capsys.readouterr().out
    for stage in (*STAGES, "all", "default: the whole takes"):
        assert stage in printed
    assert list(found["stages"]) == STAGES
    assert found["limit_seconds"] == pytest.approx(sum(run["limit_seconds"] for run in found["stages"].values()))


@pytest.mark.slow
def test_scaling_counts_every_stage_on_several_devices(tiny, monkeypatch):
    monkeypatch.setattr(scaling, "_PREDICTED", (2,))
    peaks = {"flop_per_second": 1e9, "half_flop_per_second": 1e9, "bytes_per_second": 1e9}
    arguments = [*ROWS, "--preset", "default", "--child", f"count {json.dumps(peaks)}"]
    found = scaling.main(arguments)
    assert list(found) == [*STAGES[1:], "restart"]
    # Anchor sets are shared in one go, steps send something each.
    assert (found["anchors"]["times"], found["refine_annealed"]["times"]) == (1, 4)
    two = {name: found[name]["devices"]["2"] for name in STAGES[1:]}
    assert two["refine_annealed"]["bytes"] > 0
    assert two["refine_annealed"]["limit"] < found["refine_annealed"]["devices"]["1"]["limit"]
    assert two["finish"]["bytes"] == 0
    assert found["restart"]["bytes"] > 0


@pytest.mark.slow
def test_a_consensus_is_compared(tiny, tmp_path, capsys):
    file = tmp_path / "consensus.json"
    (run,) = consensus.main([*ROWS, "--restarts", "3", "--seeds", "1", "--json", str(file)])
    assert sum(run["basins"]) == 3
    assert all(0 <= run[name] <= 1 for name in consensus.METHODS)
    assert json.loads(file.read_text())["runs"] == [run]
    out = capsys.readouterr().out
    assert "top-1, 100 rows per space, 3 restarts" in out
    assert f"consensus less the chosen restart alone: {run['consensus'] - run['chosen alone']:+.4f} on average" in out
    with pytest.raises(SystemExit):
        consensus.main(["--restarts", "1"])


@pytest.mark.slow
def test_restarts_are_counted(tiny, tmp_path, capsys):
    file = tmp_path / "restarts.json"
    found = restarts.main([*ROWS, "--counts", "1,2", "--seeds", "2", "--json", str(file)])
    assert {count: len(runs) for count, runs in found.items()} == {1: 2, 2: 2}
    assert {run["verdict"] for run in found[1]} <= {"uncertain", "not_aligned"}
    assert all(run["seconds"] > 0 for runs in found.values() for run in runs)
    assert json.loads(file.read_text())["data"]["eval"] == 40
    assert "100 rows per space, 2 seeds" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        restarts.main(["--counts", "2,0"])


def test_restarts_are_compared_with_the_first_count():
    runs = {count: [{"seconds": seconds, "top1": 0.5, "verdict": "aligned"}] for count, seconds in ((1, 2.0), (8, 7.0))}
    rows = restarts.summarise(runs, {"top1": 0.9})
    assert [row[-1] for row in rows] == ["1.00", "3.50", ""]


@pytest.mark.slow
def test_device_prints_stages_restarts_and_quality(tiny, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(device, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(device, "_NUM_EVAL", 50)
    monkeypatch.setattr(roofline, "_PEAK_SIZE", 64)
    monkeypatch.setattr(roofline, "_COPY_ENTRIES", 1_000)
    sizes = ["--rows", "200", "--dimensions", "12", "--counts", "1,2", "--batch-sizes", "1,2", "--repeats", "1"]
    record = device.main([*sizes, "--presets", "default", "--json"])
    (file,) = (tmp_path / "results").iterdir()
    assert file.name.startswith("cpu-")
    assert json.loads(file.read_text()) == record
    found = record["presets"]["default"]
    assert [(run["restarts"], run["batch"]) for run in found["restarts"]] == [(1, 1), (2, 1), (2, 2)]
    assert all(0 < times["limit"] < 1 for times in found["stages"].values())
    assert found["restarts"][2]["temporary_bytes"] > found["restarts"][1]["temporary_bytes"] > 0
    # One at a time or side by side is the same.
    assert found["restarts"][2]["top1"] == pytest.approx(found["restarts"][1]["top1"], abs=0.1)
    assert "preprocess" in capsys.readouterr().out


def test_predict_lowers_every_stage_for_devices_that_are_not_here(tiny, tmp_path, capsys):
    file = tmp_path / "predicted.json"
    sizes = ["--rows", "240", "--dimensions", "12", "--presets", "default", "--devices", "h100,tpu-v6e"]
    predict.main([*sizes, "--json", str(file)])
    found = json.loads(file.read_text())["presets"]["default"]
    assert list(found["stages"]) == STAGES
    assert "cusolver_syevd_ffi" in found["calls"]["cuda"]
    assert "Eigh" in found["calls"]["tpu"]
    for stage in found["stages"].values():
        for name in ("h100", "tpu-v6e"):
            assert 0 <= stage[name]["limit"] <= stage[name]["predicted"]
    assert found["whole"]["h100"]["limit"] == pytest.approx(
        sum(run["h100"]["limit"] for run in found["stages"].values())
    )
    # A second at the peak is predicted to take two; decompositions reach a hundredth of it.
    for kind in ({"matmul_flop": 67e12}, {"half_flop": 989e12}, {"bytes": 3.35e12}, {"decomposition_flop": 1.34e12}):
        assert predict.predict_seconds(Work(**kind), predict.DEVICES["h100"]) == pytest.approx(2)
    assert "default, lowered for tpu" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="2"):
        predict.main(["--devices", "abacus"])


def test_startup_times_processes_and_their_cache(tmp_path, monkeypatch, capsys):
    file = tmp_path / "startup.json"
    commands = []

    def run(command, *, cwd, **_):
        commands.append(command)
        commands[-1] = folder = command[command.index("--compilation-cache") + 1]
        if folder:
            cache = Path(folder)
            cache.mkdir(exist_ok=True)
            (cache / "entry").write_bytes(b"12345")
        assert np.load(cwd / "x.npy").shape[0] == 100
        said = json.dumps({"compile_seconds": 10.0 / len(commands) ** 2, "seconds": 1.0})
        return subprocess.CompletedProcess(command, 0, stdout=f"table\n{said}\n", stderr="")

    monkeypatch.setattr(startup.subprocess, "run", run)
    found = startup.main(["--rows", "100", "--json", str(file)])["times"]
    assert [times["compile"] for times in found.values()] == [10.0, 2.5, pytest.approx(10 / 9)]
    assert [Path(folder).name for folder in commands] == ["", "cache", "cache"]
    assert json.loads(file.read_text())["cache_bytes"] == 5
    # A ninth of the time without a cache.
    assert "0.11" in capsys.readouterr().out


@pytest.mark.slow
def test_larger_than_memory_runs_both_commands(tiny, monkeypatch, capsys, tmp_path):
    def run_here(*arguments):
        with contextlib.redirect_stdout(io.StringIO()) as out:
            cli.main([str(argument) for argument in arguments], standalone_mode=False)
        return {"printed": out.getvalue(), "wall_seconds": 1.0, "peak_bytes": 2**31}

    monkeypatch.setattr(larger_than_memory, "run_command", run_here)
    arguments = ["--rows", "300", "--dimensions", "16", "--shards", "3", "--apply-rows", "700", "--preset", "fast"]
    record = larger_than_memory.main([*arguments, "--folder", str(tmp_path)])
    assert record["align"]["n"] == 300
    assert record["apply"]["rows"] == 700
    assert record["align"]["mean_error"] <= 1e-6
    # Rows are float16.
    assert record["apply"]["largest_error"] <= 2**-10
    assert "2.00" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_a_command_that_fails_is_told_and_its_memory_is_its_own(tmp_path):
    found = larger_than_memory.run_command("--version")
    assert __version__ in found["printed"]
    assert 2**25 < found["peak_bytes"] < 2**36
    with pytest.raises(SystemExit, match=r"mv2v info ended with 2: Error: .*none\.safetensors"):
        larger_than_memory.run_command("info", tmp_path / "none.safetensors")


@pytest.mark.slow
def test_growth_varies_one_thing_at_a_time(tiny, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(growth, "_fit_in_child", growth.fit_files)
    arguments = ["--rows", "400,200", "--dimensions", "16", "--restarts", "2,1", "--clusters", "4"]
    record = growth.main([*arguments, "--presets", "fast", "--dtype", "float32", "--folder", str(tmp_path)])
    shown = [(run["varied"], run["rows"], run["restarts"]) for run in record["runs"]]
    assert shown == [
        ("rows", 200, 2),
        ("rows", 400, 2),
        ("dimensions", 400, 2),
        ("restarts", 400, 1),
        ("restarts", 400, 2),
        ("clusters", 400, 2),
    ]
    assert [run["input_bytes"] for run in record["runs"][:2]] == [2 * 200 * 16 * 4, 2 * 400 * 16 * 4]
    # What several lines share is fitted once.
    same = {run["steady_seconds"] for run in record["runs"] if (run["rows"], run["restarts"]) == (400, 2)}
    assert len(same) == 1
    assert [found["varied"] for found in record["exponents"]] == ["rows", "restarts"]
    assert "steady seconds grow as rows^" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())
