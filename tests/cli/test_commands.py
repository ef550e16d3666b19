"""Every command as a user runs it: real processes, real files, exit codes, and what is left on the disk."""

import json
import os
import signal
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import safetensors.numpy
from cli.commands import CACHE, SMALL, open_terminal, run
from click.testing import CliRunner
from helpers import flags_of_users

from mv2v_jax import Config
from mv2v_jax.cli import cli
from mv2v_jax.cli.align import _count_settled, _describe_second_search
from mv2v_jax.data.map_file import save_map
from mv2v_jax.linear_map import Centering, LinearMap


def info(*arguments):
    """What ``mv2v info`` prints; in this process, as it compiles nothing."""
    done = CliRunner().invoke(cli, ["info", *map(str, arguments)])
    assert done.exit_code == 0, done.output
    return done.output


def test_align_json(folder):
    lines = (folder / "align.json").read_text().splitlines()
    assert len(lines) == 1
    facts = json.loads(lines[0])
    expected = {"n": 600, "m": 600, "d_x": 16, "d_y": 12, "preset": "default", "seed": 1, "verdict": "aligned"}
    assert {name: facts[name] for name in expected} == expected
    assert facts["seconds"] > 0
    assert facts["compile_seconds"] > 0
    assert np.isfinite(facts["score"])
    assert facts["device"].startswith("cpu")
    assert facts["zero_rows_x"] == facts["duplicate_rows_y"] == 0
    assert facts["second_search"] == "not needed"


def test_fields_of_the_json_line(folder):
    """Programs read these names."""
    facts = json.loads((folder / "align.json").read_text())
    assert list(facts) == [
        *("seconds", "compile_seconds", "n", "m", "d_x", "d_y", "preset", "seed", "verdict", "reason"),
        *("confidence", "estimated_top1", "score", "closeness", "local_structure", "local_closeness"),
        *("symmetry", "distinct"),
        *("restarts", "restart_scores", "restart_chosen", "restart_agreement", "index_size"),
        *("estimated_recall1", "estimated_recall1_back", "estimated_recall10", "estimated_recall10_back", "settled"),
        *(
            "second_search",
            "device",
            "zero_rows_x",
            "zero_rows_y",
            "duplicate_rows_x",
            "duplicate_rows_y",
            "mean_norm_x",
            "mean_norm_y",
        ),
    ]


def test_recall_is_estimated_for_an_index_of_a_named_size(folder):
    facts = json.loads((folder / "align.json").read_text())
    assert facts["index_size"] == 50_000
    for back in ("", "_back"):
        assert 0 < facts[f"estimated_recall1{back}"] <= facts[f"estimated_recall10{back}"] <= 1
    assert facts["estimated_recall1"] > 0.5
    assert json.loads(info(folder / "map.safetensors", "--json"))["index_size"] == "50000"
    wrong = CliRunner().invoke(cli, ["align", "x.npy", "y.npy", "-o", "sized.safetensors", "--index-size", "0"])
    assert wrong.exit_code == 2
    assert "--index-size" in wrong.output


def test_align_answers_first_and_breaks_no_word_at_the_edge_of_a_terminal(folder):
    """The verdict, then the next command, then the facts. Only a path that is wider than the terminal is wider."""
    output = f"{'a_long_folder/' * 8}the map.safetensors"
    (folder / output).parent.mkdir(parents=True)
    arguments = ["align", "x.npy", "y.npy", "-o", output, "--seed", "1", *SMALL]
    with open_terminal() as (theirs, read):
        process = subprocess.Popen(
            [sys.executable, "-m", "mv2v_jax", *arguments],
            cwd=folder,
            stdout=theirs,
            stderr=subprocess.PIPE,
            env={**os.environ, **CACHE, "COLUMNS": "80"},
        )
        lines = read().decode().splitlines()
    _, error = process.communicate(timeout=300)
    assert (process.returncode, error) == (0, b"")
    assert lines[0].startswith("Verdict: aligned (confidence ")
    text = "\n".join(lines)
    places = [text.index(part) for part in ("Verdict: ", "  mv2v apply ", "  mv2v evaluate ", "\nseconds ", output)]
    assert places[:-1] == sorted(places[:-1])
    assert [line.split(maxsplit=1)[1] for line in lines if line.startswith("second_search")] == ["not needed"]
    assert all(len(line) <= 80 or output in line for line in lines)
    assert lines[-1] == f"  {output}"


def test_a_verdict_that_is_not_aligned_is_said_and_written_and_exits_with_3(folder):
    rng = np.random.default_rng(0)
    for name, columns in (("noise_x", 16), ("noise_y", 12)):
        np.save(folder / f"{name}.npy", rng.normal(size=(600, columns)).astype(np.float32))
    fit = ("align", "noise_x.npy", "noise_y.npy", "-o", "noise.safetensors", *SMALL)
    done = run(*fit, cwd=folder)
    assert done.returncode == 3
    assert done.stderr.startswith("Warning: not aligned (confidence 0.0")
    assert "Traceback" not in done.stderr
    assert "Warning" not in done.stdout
    assert "mv2v align noise_x.npy noise_y.npy -o noise.safetensors --pairs PX PY" in done.stdout
    assert "mv2v apply" not in done.stdout
    assert json.loads(info(folder / "noise.safetensors", "--json"))["verdict"] == "not_aligned"
    accepted = run(*fit, "--accept", cwd=folder)
    assert (accepted.returncode, accepted.stderr) == (0, "")
    assert accepted.stdout.startswith("Verdict: not aligned (confidence 0.0")
    mapped = run("apply", "noise.safetensors", "noise_x.npy", "-o", "noise_out.npy", cwd=folder)
    assert mapped.returncode == 0
    assert "judged not_aligned" in mapped.stderr
    silent = run("apply", "noise.safetensors", "noise_x.npy", "-o", "noise_out.npy", "--accept", cwd=folder)
    assert (silent.returncode, silent.stderr) == (0, "")
    why = info(folder / "noise.safetensors")
    assert "Verdict: not aligned (confidence 0.0" in why
    assert "hardly nearer to the other space than by chance" in why


@pytest.mark.parametrize(
    ("tried", "used", "expected"),
    [(False, False, "not needed"), (True, False, "tried, not better"), (True, True, "used")],
)
def test_what_the_second_search_came_to_is_named(tried, used, expected):
    components = SimpleNamespace(tried=np.asarray(tried), used=np.asarray(used))
    best = SimpleNamespace(info=SimpleNamespace(components=components))
    assert _describe_second_search(SimpleNamespace(result=SimpleNamespace(best=best))) == expected


@pytest.mark.parametrize(
    ("used", "restarts", "settled", "expected"),
    [(False, 2, 1, 1), (True, 2, 1, 2), (True, 1, 1, 1), (False, 2, 3, 2), (True, 4, 3, 3)],
)
def test_the_settled_searches_are_counted(used, restarts, settled, expected):
    best = SimpleNamespace(info=SimpleNamespace(components=SimpleNamespace(used=np.asarray(used))))
    fit = SimpleNamespace(result=SimpleNamespace(best=best))
    assert _count_settled(fit, Config(), restarts, settled) == expected


@pytest.mark.slow
def test_a_second_search_is_shown_and_written(folder):
    rng = np.random.default_rng(0)
    for name, columns in (("odd_x", 8), ("odd_y", 7)):
        np.save(folder / f"{name}.npy", rng.normal(size=(600, columns)).astype(np.float32))
    more = ("--components-num-runs", 2, "--components-ica-steps", 5, "--components-match-steps", 5)
    fit = ("align", "odd_x.npy", "odd_y.npy", "-o", "odd_two.safetensors", "--json", "--accept", *SMALL, *more)
    done = run(*fit, cwd=folder)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)["second_search"]
    assert found in ("used", "tried, not better")
    assert json.loads(info(folder / "odd_two.safetensors", "--json"))["second_search"] == found


def test_a_single_restart_is_uncertain_which_warns_and_exits_with_0(folder):
    done = run("align", "x.npy", "y.npy", "-o", "one.safetensors", "--restarts", 1, *SMALL, cwd=folder)
    assert done.returncode == 0
    assert done.stderr.startswith("Warning: uncertain (confidence 0.50) whether the spaces were aligned: ")
    assert "a single restart has no other map to agree with" in done.stderr
    assert "a single restart has no other map to agree with" in info(folder / "one.safetensors")


@pytest.mark.slow
def test_a_folder_of_shards_gives_the_map_of_one_file(folder):
    for name in ("x", "y"):
        (folder / f"{name}_shards").mkdir()
        for part, shard in enumerate(np.array_split(np.load(folder / f"{name}.npy"), 7)):
            np.save(folder / f"{name}_shards" / f"{part}.npy", shard)
    arguments = ("x_shards", "y_shards", "-o", "shards.safetensors", "--json", "--accept", "--seed", 1, *SMALL)
    arguments += ("--index-size", 50_000)
    done = run("align", *arguments, cwd=folder)
    assert (done.returncode, done.stderr) == (0, "")
    found, expected = (json.loads(text) for text in (done.stdout, (folder / "align.json").read_text()))
    for facts in (found, expected):
        del facts["seconds"], facts["compile_seconds"]
    assert found == expected
    maps = [safetensors.numpy.load_file(folder / f"{name}.safetensors") for name in ("shards", "map")]
    for name, tensor in maps[1].items():
        np.testing.assert_array_equal(maps[0][name], tensor)
    digests = [json.loads(info(folder / f"{name}.safetensors", "--json")) for name in ("shards", "map")]
    assert digests[0] == digests[1]
    for source, output in (("x_shards", "from_shards.npy"), ("x.npy", "from_file.npy")):
        done = run("apply", "map.safetensors", source, "-o", output, cwd=folder)
        assert "600 rows, 16 to 12 dimensions, centred, " in done.stdout
    assert (folder / "from_shards.npy").read_bytes() == (folder / "from_file.npy").read_bytes()
    done = run("evaluate", "map.safetensors", "x_shards", "x_shards", cwd=folder)
    assert "x_shards must have 12 columns for the target of map.safetensors, found 16" in done.stderr


def test_map_holds_its_provenance(folder):
    done = run("info", "map.safetensors", "--json", cwd=folder)
    facts = json.loads(done.stdout)
    assert facts["W"] == [16, 12]
    assert facts["seed"] == "1"
    assert json.loads(facts["config"])["anchors"]["num_clusters"] == 12
    assert len(facts["digest_x"]) == len(facts["digest_y"]) == 64
    assert facts["digest_x"] != facts["digest_y"]
    tensors = safetensors.numpy.load_file(folder / "map.safetensors")
    np.testing.assert_allclose(tensors["W"].T @ tensors["W"], np.eye(12), atol=1e-4)


def test_info_says_why_a_map_was_judged_as_it_was(folder):
    text = info(folder / "map.safetensors")
    facts = json.loads((folder / "align.json").read_text())
    assert text.startswith(f"{folder / 'map.safetensors'} maps 16 dimensions to 12, fitted on 600 and 600 rows.\n")
    parts = ("Verdict: aligned", "Why it was judged so:", "Where it came from:", "mv2v_jax_version", "Settings:")
    places = [text.index(part) for part in parts]
    assert places == sorted(places)
    why = text[places[1] : places[2]]
    for name in ("score", "restart_agreement", "restarts"):
        value = f"{facts[name]:.4g}"
        assert [line for line in why.splitlines() if f" {name} " in line and value in line], why
    # A tenth of 600 rows, which are padded to 640.
    assert [line for line in why.splitlines() if " held_out_rows " in line and " 64 " in line], why
    assert "num_clusters=12" in text[places[-1] :]


def save_identity(path, metadata):
    centering = Centering(mean=np.zeros(2, np.float32), scale=np.float32(1))
    save_map(path, LinearMap(W=np.eye(2, dtype=np.float32), source=centering, target=centering), metadata)
    return info(path)


def test_info_of_a_study_names_its_agreement_and_where_the_scores_are(tmp_path):
    summary = {"median": 0.75, "lowest": 0.5, "highest": 1.0}
    facts = {"verdict": "aligned", "confidence": 0.9, "estimated_top1": 0.5, "restarts": 4, "agreement": summary}
    text = save_identity(tmp_path / "map.safetensors", {**facts, "basins": [{"basin": 0, "size": 4, "score": summary}]})
    assert "Verdict: aligned (confidence 0.90)" in text
    assert [line for line in text.splitlines() if " agreement " in line and " 0.75 " in line]
    assert "restarts.csv" in text
    assert "basin 0, size 4, score (median 0.75, lowest 0.5, highest 1)" in text


def test_info_of_a_map_without_a_verdict(tmp_path):
    text = save_identity(tmp_path / "map.safetensors", {"note": "made by hand"})
    assert "Verdict: none" in text
    assert "made by hand" in text
    assert "Settings" not in text


def test_info_of_a_map_with_the_flat_config_of_older_versions(tmp_path):
    """It still counts the held-out rows, and prints the settings."""
    facts = {"verdict": "aligned", "confidence": 0.9, "estimated_top1": 0.5, "restarts": 2, "n": 900, "m": 2_000}
    config = {"held_out_rows": 1_000, "most_rows": 100_000, "num_clusters": 20}
    text = save_identity(tmp_path / "map.safetensors", {**facts, "config": config})
    assert "num_clusters=20" in text
    assert [line for line in text.splitlines() if " held_out_rows " in line and " 96 " in line]


def test_apply_frames_and_inverse(folder):
    for arguments in (["-o", "centred.npy"], ["-o", "target.npy", "--frame", "target"]):
        assert run("apply", "map.safetensors", "x_eval.npy", *arguments, cwd=folder).returncode == 0
    tensors = safetensors.numpy.load_file(folder / "map.safetensors")
    x = np.load(folder / "x_eval.npy") - tensors["mean_x"]
    mapped = x / np.linalg.norm(x, axis=1, keepdims=True) @ tensors["W"]
    mapped /= np.linalg.norm(mapped, axis=1, keepdims=True)
    np.testing.assert_allclose(np.load(folder / "centred.npy"), mapped, atol=1e-5)
    raw = tensors["mean_y"] + tensors["scale_y"] * mapped
    np.testing.assert_allclose(np.load(folder / "target.npy"), raw, rtol=1e-4, atol=1e-4)
    done = run("apply", "map.safetensors", "y_eval.npy", "-o", "back.npy", "--inverse", "--frame", "target", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert np.load(folder / "back.npy").shape == (100, 16)


def test_evaluate(folder):
    done = run("evaluate", "map.safetensors", "x_eval.npy", "y_eval.npy", "--json", cwd=folder)
    scores = json.loads(done.stdout)
    names = ["top1", "top5", "top10", "mean_rank", "mrr", "foscttm", "cosine"]
    assert list(scores) == [*names, "n", "search", "search_back"]
    assert scores["n"] == 100
    mapped = np.load(folder / "x_eval.npy")
    tensors = safetensors.numpy.load_file(folder / "map.safetensors")
    target = np.load(folder / "y_eval.npy") - tensors["mean_y"]
    mapped = (mapped - tensors["mean_x"]) @ tensors["W"]
    similarity = (mapped / np.linalg.norm(mapped, axis=1, keepdims=True)) @ (
        target / np.linalg.norm(target, axis=1, keepdims=True)
    ).T
    ranks = 1 + (similarity > np.diag(similarity)[:, None] + 1e-6).sum(1)
    assert scores["mean_rank"] == pytest.approx(ranks.mean(), rel=1e-2)
    assert scores["foscttm"] == pytest.approx((ranks - 1).mean() / 99, abs=1e-2)
    # The planted map was found: chance would be 0.5.
    assert scores["foscttm"] < 0.05
    text = run("evaluate", "map.safetensors", "x_eval.npy", "y_eval.npy", cwd=folder).stdout
    assert text.startswith(f"{scores['top1']:.1%} of 100 mapped rows find their true partner first")
    assert all(name in text for name in names[3:])
    assert scores["search"]["recall1"][0] == pytest.approx(scores["top1"])
    assert "recall@10" in text


def test_progress_bar_on_a_terminal_and_odd_rows_are_counted(folder):
    """Standard error is a pseudo-terminal: the stages appear on it, and standard output stays clean."""
    x = np.load(folder / "x.npy")
    x[:3] = 0
    x[10] = x[11]
    np.save(folder / "odd.npy", x)
    arguments = ["align", "odd.npy", "y.npy", "-o", "odd.safetensors", "--json", *SMALL]
    with open_terminal() as (theirs, read):
        process = subprocess.Popen(
            [sys.executable, "-m", "mv2v_jax", *arguments],
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=theirs,
            text=True,
            env={**os.environ, **CACHE, "TERM": "xterm", "COLUMNS": "120"},
        )
        seen = read()
    stdout, _ = process.communicate(timeout=300)
    assert process.returncode == 0
    facts = json.loads(stdout)
    assert (facts["n"], facts["zero_rows_x"]) == (600, 3)
    # Two of the three zero rows repeat the first.
    assert facts["duplicate_rows_x"] == 3
    assert np.isfinite(safetensors.numpy.load_file(folder / "odd.safetensors")["W"]).all()
    # One bar, which says what is compiled, comes to its end and is erased.
    for part in (b"compiling", b"anchors", b"100%", b"left:"):
        assert part in seen
    assert seen.endswith(b"\x1b[2K")


def test_a_write_that_fails_halfway(folder):
    """A limit on file sizes stands for a full disk: one sentence, and nothing is left."""
    before = sorted(folder.iterdir())
    program = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, 1_000)); "
    program += "from mv2v_jax.__main__ import main; main()"
    # Without the cache of compilations, on which the limit would fall first.
    done = subprocess.run(
        [sys.executable, "-c", program, "apply", "map.safetensors", "x_eval.npy", "-o", "large.npy"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 2
    assert "large.npy cannot be written" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert sorted(folder.iterdir()) == before


def test_a_map_that_does_not_fit_on_the_disk(folder):
    """Of safetensors too it is one sentence, and nothing is left."""
    before = sorted(folder.iterdir())
    program = "import resource; from mv2v_jax.cli import align, main; save = align.save_map\n"
    # The limit would fall on everything that is compiled as well.
    program += "def limited(*a, **k): resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, 1_000)); save(*a, **k)\n"
    program += "align.save_map = limited; main()"
    arguments = ["align", "x.npy", "y.npy", "-o", "full.safetensors", *SMALL]
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        cwd=folder,
        env={**os.environ, **CACHE},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2, done.stderr
    assert "full.safetensors cannot be written" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert sorted(folder.iterdir()) == before


def test_interrupt(folder):
    """Ctrl-C in the middle of a fit: exit code 130, one sentence, nothing written."""
    before = sorted(folder.iterdir())
    # A shell's background jobs ignore the interrupt, and their children inherit that.
    program = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    program += "from mv2v_jax.__main__ import main; main()"
    with open_terminal() as (theirs, read):
        process = subprocess.Popen(
            [sys.executable, "-c", program, "align", "x.npy", "y.npy", "-o", "out.safetensors", *SMALL],
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=theirs,
            env={**os.environ, "TERM": "xterm"},
        )
        seen = read(until=b"anchors")
        process.send_signal(signal.SIGINT)
        seen += read()
    stdout, _ = process.communicate(timeout=300)
    assert process.returncode == 130
    assert b"Error: interrupted" in seen
    assert b"Traceback" not in seen
    assert stdout == b""
    assert sorted(folder.iterdir()) == before


def test_missing_extra_is_named(tmp_path):
    """Without its packages the command says what to install."""
    program = "import sys; sys.modules['click'] = None; from mv2v_jax.__main__ import main; main()"
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert 'pip install "mv2v_jax[cli]"' in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_demo_succeeds_for_ten_seeds(folder, monkeypatch):
    """The bundled pair is aligned by every seed; FOSCTTM is 0.5 by chance and 0.0008 for the oracle."""
    # Here running is the cost, not compiling.
    monkeypatch.setitem(CACHE, "JAX_DISABLE_MOST_OPTIMIZATIONS", "0")
    monkeypatch.setitem(CACHE, "XLA_FLAGS", flags_of_users())
    for seed in range(10):
        done = run("demo", "--json", "--seed", seed, cwd=folder)
        found = json.loads(done.stdout)
        assert found["mv2v"]["foscttm"] < 0.01
        assert found["mv2v"]["top1"] > 0.7 * found["oracle"]["top1"]


def test_compiled_functions_are_kept_by_several_processes_at_once(folder, tmp_path):
    """In the user's folder by default, where nothing is set."""
    without = {"MV2V_COMPILATION_CACHE", "JAX_COMPILATION_CACHE_DIR"}
    home = {name: value for name, value in {**os.environ, **CACHE}.items() if name not in without}
    evaluate = [sys.executable, "-m", "mv2v_jax", "evaluate", "map.safetensors", "x_eval.npy", "y_eval.npy", "--json"]

    def start():
        environment = {**home, "XDG_CACHE_HOME": str(tmp_path)}
        return subprocess.Popen(evaluate, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment)

    together = [process.communicate(timeout=300) for process in (start(), start())]
    cache = tmp_path / "mv2v_jax"
    kept = {file.name: file.stat().st_mtime_ns for file in cache.iterdir()}
    assert kept
    assert {*together, start().communicate(timeout=300)} == {(together[0][0], b"")}
    assert {file.name: file.stat().st_mtime_ns for file in cache.iterdir()} == kept


def test_a_cache_that_cannot_be_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    done = run("--compilation-cache", tmp_path / "file", "info", "map.safetensors", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("Error: --compilation-cache: ")
    assert "Traceback" not in done.stderr
