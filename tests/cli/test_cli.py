"""The command line as a user runs it: real processes, real files, every command and every bad input."""

import json
import os
import pty
import resource
import signal
import subprocess
import sys

import numpy as np
import pytest
import safetensors.numpy
from conftest import flags_of_users

from mv2v_jax.__main__ import main

SMALL = [
    *("--num-anchor-sets", "12", "--num-clusters", "12", "--anchor-rows", "300", "--num-starts", "4"),
    *("--search-steps", "20", "--kept-sets", "6", "--matching-rows", "200", "--num-neighbors", "5"),
    *("--anneal-steps", "10", "--anneal-rows", "150", "--csls-steps", "2", "--csls-rows", "200"),
    # A rotation, so that what it should be is known.
    *("--whitening-power", "0", "--reliability-power", "0"),
]


# Most of a small fit's time is compiling, so the processes share what they compile.
CACHE = {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}


def run(*arguments, cwd, **options):
    command = [sys.executable, "-m", "mv2v_jax", *map(str, arguments)]
    return subprocess.run(
        command,
        cwd=cwd,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=300,
        # Colour forced on, as some CI does, must not bring the bar into a pipe.
        env={**os.environ, **CACHE, "FORCE_COLOR": "1"},
        **options,
    )


@pytest.fixture(scope="module", autouse=True)
def compilation_cache(tmp_path_factory):
    CACHE["JAX_COMPILATION_CACHE_DIR"] = str(tmp_path_factory.mktemp("compiled"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two rotated, noisy views of one clustered cloud, and a map fitted on disjoint rows of them."""
    folder = tmp_path_factory.mktemp("cli")
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(12, 10)) * np.linspace(3, 0.5, 10)
    latent = centres[rng.integers(0, 12, 900)] + 0.3 * rng.normal(size=(900, 10))
    views = [
        latent @ np.linalg.qr(rng.normal(size=(d, 10)))[0].T + 0.01 * rng.normal(size=(900, d)) + 0.5 for d in (16, 12)
    ]
    source, target = (view.astype(np.float32) for view in views)
    arrays = {"x": source[:400], "y": target[400:800], "x_eval": source[800:], "y_eval": target[800:]}
    for name, rows in arrays.items():
        np.save(folder / f"{name}.npy", rows)
    # Few rows can be held out of 400, so the verdict is uncertain, and accepted.
    arguments = ("x.npy", "y.npy", "-o", "map.safetensors", "--json", "--accept", "--seed", 3, *SMALL)
    done = run("align", *arguments, cwd=folder)
    assert done.returncode == 0, done.stderr
    # Silent where standard error is not a terminal, and one line of JSON on standard output.
    assert done.stderr == ""
    (folder / "align.json").write_text(done.stdout)
    return folder


def test_align_json(folder):
    lines = (folder / "align.json").read_text().splitlines()
    assert len(lines) == 1
    facts = json.loads(lines[0])
    expected = {"n": 400, "m": 400, "d_x": 16, "d_y": 12, "preset": "default", "seed": 3}
    assert {name: facts[name] for name in expected} == expected
    assert facts["seconds"] > 0
    assert facts["compile_seconds"] > 0
    assert np.isfinite(facts["score"])
    assert facts["device"].startswith("cpu")
    assert facts["zero_rows_x"] == facts["duplicate_rows_y"] == 0


def test_a_verdict_that_is_not_aligned_is_said_and_written_and_exits_with_3(folder):
    rng = np.random.default_rng(0)
    for name, columns in (("noise_x", 16), ("noise_y", 12)):
        # More than the others: of 400 too few can be held out to be sure.
        np.save(folder / f"{name}.npy", rng.normal(size=(600, columns)).astype(np.float32))
    fit = ("align", "noise_x.npy", "noise_y.npy", "-o", "noise.safetensors", *SMALL)
    done = run(*fit, cwd=folder)
    assert done.returncode == 3
    assert done.stderr.startswith("Warning: not aligned (confidence 0.0")
    assert "Traceback" not in done.stderr
    assert json.loads(run("info", "noise.safetensors", "--json", cwd=folder).stdout)["verdict"] == "not_aligned"
    accepted = run(*fit, "--accept", cwd=folder)
    assert (accepted.returncode, accepted.stderr) == (0, "")
    mapped = run("apply", "noise.safetensors", "noise_x.npy", "-o", "noise_out.npy", cwd=folder)
    assert mapped.returncode == 0
    assert "judged not_aligned" in mapped.stderr
    silent = run("apply", "noise.safetensors", "noise_x.npy", "-o", "noise_out.npy", "--accept", cwd=folder)
    assert (silent.returncode, silent.stderr) == (0, "")


def test_a_folder_of_shards_gives_the_map_of_one_file(folder):
    for name in ("x", "y"):
        (folder / f"{name}_shards").mkdir()
        for part, shard in enumerate(np.array_split(np.load(folder / f"{name}.npy"), 7)):
            np.save(folder / f"{name}_shards" / f"{part}.npy", shard)
    arguments = ("x_shards", "y_shards", "-o", "shards.safetensors", "--json", "--accept", "--seed", 3, *SMALL)
    done = run("align", *arguments, cwd=folder)
    assert (done.returncode, done.stderr) == (0, "")
    found, expected = (json.loads(text) for text in (done.stdout, (folder / "align.json").read_text()))
    for facts in (found, expected):
        del facts["seconds"], facts["compile_seconds"]
    assert found == expected
    maps = [safetensors.numpy.load_file(folder / f"{name}.safetensors") for name in ("shards", "map")]
    for name, tensor in maps[1].items():
        np.testing.assert_array_equal(maps[0][name], tensor)
    digests = [
        json.loads(run("info", f"{name}.safetensors", "--json", cwd=folder).stdout) for name in ("shards", "map")
    ]
    assert digests[0] == digests[1]
    for source, output in (("x_shards", "from_shards.npy"), ("x.npy", "from_file.npy")):
        done = run("apply", "map.safetensors", source, "-o", output, cwd=folder)
        assert "400 rows, 16 to 12 dimensions, centred, " in done.stdout
    assert (folder / "from_shards.npy").read_bytes() == (folder / "from_file.npy").read_bytes()
    done = run("evaluate", "map.safetensors", "x_shards", "x_shards", cwd=folder)
    assert "x_shards must have 12 columns for the target of map.safetensors, found 16" in done.stderr


def test_map_holds_its_provenance(folder):
    done = run("info", "map.safetensors", "--json", cwd=folder)
    facts = json.loads(done.stdout)
    assert facts["W"] == [16, 12]
    assert facts["seed"] == "3"
    assert json.loads(facts["config"])["num_clusters"] == 12
    assert len(facts["digest_x"]) == len(facts["digest_y"]) == 64
    assert facts["digest_x"] != facts["digest_y"]
    readable = run("info", "map.safetensors", cwd=folder)
    assert "mv2v_jax_version" in readable.stdout
    tensors = safetensors.numpy.load_file(folder / "map.safetensors")
    np.testing.assert_allclose(tensors["W"].T @ tensors["W"], np.eye(12), atol=1e-4)


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
    assert list(scores) == ["top1", "top5", "top10", "mean_rank", "mrr", "foscttm", "cosine", "n"]
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
    assert "mean_rank" in run("evaluate", "map.safetensors", "x_eval.npy", "y_eval.npy", cwd=folder).stdout


def test_progress_bar_on_a_terminal_and_odd_rows_are_counted(folder):
    """Standard error is a pseudo-terminal: the stages appear on it, and standard output stays clean."""
    x = np.load(folder / "x.npy")
    x[:3] = 0
    x[10] = x[11]
    np.save(folder / "odd.npy", x)
    ours, theirs = pty.openpty()
    arguments = ["align", "odd.npy", "y.npy", "-o", "odd.safetensors", "--json", *SMALL]
    environment = {**os.environ, **CACHE, "TERM": "xterm", "COLUMNS": "120"}
    process = subprocess.Popen(
        [sys.executable, "-m", "mv2v_jax", *arguments],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=theirs,
        text=True,
        env=environment,
    )
    os.close(theirs)
    seen = b""
    try:
        while chunk := os.read(ours, 65_536):
            seen += chunk
    except OSError:
        pass  # Linux answers EIO once the other end is closed.
    finally:
        os.close(ours)
    stdout, _ = process.communicate(timeout=300)
    assert process.returncode == 0
    facts = json.loads(stdout)
    assert (facts["n"], facts["zero_rows_x"]) == (400, 3)
    # Two of the three zero rows repeat the first.
    assert facts["duplicate_rows_x"] == 3
    assert np.isfinite(safetensors.numpy.load_file(folder / "odd.safetensors")["W"]).all()
    for stage in (b"anchors", b"refine annealed", b"10/10"):
        assert stage in seen


def test_help_and_version(folder):
    text = run("align", "--help", cwd=folder).stdout
    for flag in ("--num-anchor-sets", "--smoothing", "--project / --no-project", "--preset"):
        assert flag in text
    assert "0.1.0" in run("--version", cwd=folder).stdout


def _bad_rows(folder):
    x = np.load(folder / "x.npy")
    holes = x.copy()
    holes[[7, 9], 2] = np.nan, np.inf
    content = (folder / "x.npy").read_bytes()
    np.savez(folder / "two.npz", a=x, b=x)
    np.savez(folder / "archive.npz", x)
    (folder / "archive.npz").rename(folder / "archive.npy")
    os.mkfifo(folder / "pipe.npy")
    np.save(folder / "object.npy", np.array([{}, None], dtype=object), allow_pickle=True)
    (folder / "cut.npy").write_bytes(content[: len(content) // 2])
    for kind in ("cut", "wide", "double", "nan"):
        (folder / f"{kind}_shards").mkdir()
        for part, shard in enumerate(np.array_split(x, 12)):
            path = folder / f"{kind}_shards" / f"{part:02d}.npy"
            bad = {"wide": np.hstack([shard, shard]), "double": shard.astype(np.float64), "nan": shard.copy()}
            bad["nan"][17, 3] = np.nan
            np.save(path, bad.get(kind, shard) if part == 7 else shard)
            if kind == "cut" and part == 7:
                path.write_bytes(path.read_bytes()[:-1])
    (folder / "mixed").mkdir()
    (folder / "mixed" / "notes.txt").write_text("")
    for name, rows in {
        "nan": holes,
        "flat": x[0],
        "empty": x[:0],
        "few": x[:5],
        "equal": np.repeat(x[:1], 50, axis=0),
        "labels": np.arange(400).reshape(100, 4),
        "complex": x.astype(np.complex64),
        "wide": np.hstack([x, x]),
        "foreign": x.astype(">f4"),
        "equal_or_zero": np.concatenate([np.zeros_like(x[:5]), np.repeat(x[:1], 50, axis=0)]),
        "huge": x * np.float32(1e25),
        "tiny": x * np.float32(1e-25),
        "short_eval": x[:50],
    }.items():
        np.save(folder / f"{name}.npy", rows)


ALIGN = ("align", "{bad}", "y.npy", "-o", "out.safetensors", "--num-clusters", "6")
BAD_INPUTS = {
    "NaN": (ALIGN, "nan.npy", "nan.npy must be finite, found NaN or infinity in 2 rows, first in row 7"),
    "not two-dimensional": (ALIGN, "flat.npy", "flat.npy must be two-dimensional, one embedding a row, found shape"),
    "empty": (ALIGN, "empty.npy", "empty.npy must have at least 6 rows, found 0"),
    "fewer rows than clusters": (ALIGN, "few.npy", "few.npy must have at least 6 rows, found 5"),
    "all rows equal": (ALIGN, "equal.npy", "equal.npy must hold different rows, found 50 equal ones"),
    "object array": (ALIGN, "object.npy", "object.npy must hold numbers, found an object array"),
    "integer labels": (ALIGN, "labels.npy", "labels.npy must hold floating-point embeddings, found dtype int64"),
    "complex": (ALIGN, "complex.npy", "found dtype complex64"),
    "foreign byte order": (ALIGN, "foreign.npy", "found dtype >f4"),
    "all rows equal or zero": (ALIGN, "equal_or_zero.npy", "must hold different rows, found 55 equal ones"),
    "too large to square": (ALIGN, "huge.npy", "which can be squared, found a longer one, first in row 0"),
    "too small to square": (ALIGN, "tiny.npy", "which can be squared, found a mean length of "),
    "an archive named .npy": (ALIGN, "archive.npy", "archive.npy cannot be read"),
    "a coordinator of nobody": ((*ALIGN, "--coordinator", "a:1"), "nan.npy", "must come with --distributed"),
    "nobody to join": ((*ALIGN, "--distributed"), "nan.npy", "--distributed must find the other processes"),
    "devices that do not divide": (
        (*ALIGN, "--all-devices", "--row-devices", "3"),
        "nan.npy",
        "row devices must divide the",
    ),
    "no arguments": (("align",), "", "Error: Missing argument 'X'."),
    "truncated": (ALIGN, "cut.npy", "cut.npy cannot be read, it is damaged or cut short"),
    "truncated shard": (ALIGN, "cut_shards", "cut_shards/07.npy cannot be read, it is damaged or cut short"),
    "shard of another dimension": (
        ALIGN,
        "wide_shards",
        "wide_shards/07.npy must have 16 columns as 00.npy has, found 32",
    ),
    "shard of another dtype": (ALIGN, "double_shards", "double_shards/07.npy must hold float32 as 00.npy does"),
    "NaN in a shard": (ALIGN, "nan_shards", "found NaN or infinity in 1 rows, first in shard nan_shards/07.npy row 17"),
    "not only shards": (ALIGN, "mixed", "mixed must hold .npy shards alone, found notes.txt; move it elsewhere"),
    "apply, NaN in a shard": (
        ("apply", "map.safetensors", "{bad}", "-o", "out.npy"),
        "nan_shards",
        "nan_shards must be finite, found NaN or infinity, first in shard nan_shards/07.npy row 17",
    ),
    "missing file": (ALIGN, "none.npy", "none.npy must be a file, found nothing of that name"),
    "unknown suffix": (ALIGN, "x.csv", "found suffix .csv"),
    "missing key": (ALIGN, "two.npz:c", "two.npz must hold an array named c, found a, b"),
    "no key": (ALIGN, "two.npz", "two.npz holds several arrays, name one as two.npz:KEY; found a, b"),
    "config out of range": ((*ALIGN, "--smoothing", "1.5"), "x.npy", "smoothing must be from 0.0 to 1.0, found 1.5"),
    "config below least": ((*ALIGN, "--num-starts", "0"), "x.npy", "num_starts must be a whole number of at least 1"),
    "config of wrong type": ((*ALIGN, "--num-starts", "many"), "x.npy", "'many' is not a valid integer"),
    "config that contradicts itself": ((*ALIGN, "--no-project"), "x.npy", "project must be true where"),
    "unknown preset": ((*ALIGN, "--preset", "best"), "x.npy", "'best' is not one of"),
    "no folder to write to": (
        ("align", "{bad}", "y.npy", "-o", "none/out.safetensors"),
        "x.npy",
        "none/out.safetensors cannot be written: there is no folder none",
    ),
    "a folder to write over": (("align", "{bad}", "y.npy", "-o", "."), "x.npy", "must be a file to write, found a fol"),
    "apply, wrong dimension": (
        ("apply", "map.safetensors", "{bad}", "-o", "out.npy"),
        "wide.npy",
        "wide.npy must have 16 columns for map.safetensors, found 32",
    ),
    "apply, inverse of the wrong side": (
        ("apply", "map.safetensors", "{bad}", "-o", "out.npy", "--inverse"),
        "x.npy",
        "x.npy must have 12 columns for map.safetensors inverted, found 16",
    ),
    "apply, not a map": (
        ("apply", "{bad}", "x.npy", "-o", "out.npy"),
        "x.npy",
        "x.npy must be a map that mv2v align wrote",
    ),
    "apply, NaN": (("apply", "map.safetensors", "{bad}", "-o", "out.npy"), "nan.npy", "first in row 7"),
    "apply, a pipe to write over": (("apply", "map.safetensors", "{bad}", "-o", "pipe.npy"), "x.npy", "found a device"),
    "apply, no folder": (("apply", "map.safetensors", "{bad}", "-o", "none/out.npy"), "x.npy", "no folder none"),
    "evaluate, row counts": (
        ("evaluate", "map.safetensors", "{bad}", "y_eval.npy"),
        "short_eval.npy",
        "y_eval.npy must have a row for each of the 50 of short_eval.npy, found 100",
    ),
    "evaluate, wrong dimension": (
        ("evaluate", "map.safetensors", "x_eval.npy", "{bad}"),
        "x_eval.npy",
        "x_eval.npy must have 12 columns for the target of map.safetensors, found 16",
    ),
    "info, no map": (("info", "{bad}"), "none.safetensors", "found no file of that name"),
}


@pytest.mark.parametrize("name", BAD_INPUTS)
def test_bad_input(folder, name, monkeypatch, capfd):
    """One sentence, exit code 2, no traceback, nothing written; in this process, as one of its own takes seconds."""
    if not (folder / "nan.npy").exists():
        _bad_rows(folder)
    before = sorted(folder.iterdir())
    arguments, bad, message = BAD_INPUTS[name]
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["mv2v", *(str(part).format(bad=bad) for part in arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    out, error = capfd.readouterr()
    assert ended.value.code == 2, error
    assert message in error
    assert error.startswith("Error: ")
    assert len(error.splitlines()) == 1
    assert out == ""
    assert sorted(folder.iterdir()) == before


def test_a_write_that_fails_halfway(folder):
    """A limit on file sizes stands for a full disk: one sentence, and nothing is left."""
    before = sorted(folder.iterdir())
    # The limit would fall on the cache of compilations first.
    unlimited = {name: CACHE.pop(name) for name in list(CACHE)}
    done = run(
        *("apply", "map.safetensors", "x_eval.npy", "-o", "large.npy"),
        cwd=folder,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, 1_000)),
    )
    CACHE.update(unlimited)
    assert done.returncode == 2
    assert "large.npy cannot be written" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert sorted(folder.iterdir()) == before


def test_a_map_that_does_not_fit_on_the_disk(folder):
    """Of safetensors too it is one sentence, and nothing is left."""
    before = sorted(folder.iterdir())
    program = (
        "import resource; from mv2v_jax.cli import app as cli; save = cli.save_map; limit = resource.RLIMIT_FSIZE\n"
    )
    # The limit would fall on everything that is compiled as well.
    program += "cli.save_map = lambda *a: (resource.setrlimit(limit, (1_000, 1_000)), save(*a)); cli.main()"
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
    ours, theirs = pty.openpty()
    before = sorted(folder.iterdir())
    # A shell's background jobs ignore the interrupt, and their children inherit that.
    program = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    program += "from mv2v_jax.__main__ import main; main()"
    process = subprocess.Popen(
        [sys.executable, "-c", program, "align", "x.npy", "y.npy", "-o", "out.safetensors", *SMALL],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=theirs,
        env={**os.environ, "TERM": "xterm"},
    )
    os.close(theirs)
    seen = b""
    try:
        while b"anchors" not in seen:
            seen += os.read(ours, 65_536)
        process.send_signal(signal.SIGINT)
        while chunk := os.read(ours, 65_536):
            seen += chunk
    except OSError:
        pass  # Linux answers EIO once the other end is closed.
    finally:
        os.close(ours)
    stdout, _ = process.communicate(timeout=300)
    assert process.returncode == 130
    assert b"Error: interrupted" in seen
    assert b"Traceback" not in seen
    assert stdout == b""
    assert sorted(folder.iterdir()) == before


def test_missing_extra_is_named(folder):
    """Without its packages the command says what to install."""
    program = "import sys; sys.modules['click'] = None; from mv2v_jax.__main__ import main; main()"
    done = subprocess.run([sys.executable, "-c", program], cwd=folder, capture_output=True, text=True, timeout=60)
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


@pytest.mark.parametrize("named_by", ["option", "variable"])
def test_compiled_functions_are_kept_where_asked(folder, tmp_path, monkeypatch, named_by):
    cache = tmp_path / "new" / "cache"
    option = ["--compilation-cache", cache] if named_by == "option" else []
    if named_by == "variable":
        monkeypatch.setenv("MV2V_COMPILATION_CACHE", str(cache))
    evaluate = ["evaluate", "map.safetensors", "x_eval.npy", "y_eval.npy", "--json"]
    first = run(*option, *evaluate, cwd=folder)
    assert first.returncode == 0, first.stderr
    kept = {file.name for file in cache.iterdir()}
    assert kept
    assert run(*option, *evaluate, cwd=folder).stdout == first.stdout
    assert {file.name for file in cache.iterdir() if file.name.endswith("-cache")} <= kept


def test_a_cache_that_cannot_be_is_named(folder, tmp_path):
    (tmp_path / "file").write_text("")
    done = run("--compilation-cache", tmp_path / "file", "info", "map.safetensors", cwd=folder)
    assert done.returncode == 2
    assert done.stderr.startswith("Error: --compilation-cache: ")
    assert "Traceback" not in done.stderr
