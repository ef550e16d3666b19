"""Commands on a disk that fills up: one sentence, nothing half-written, nothing left; with more space they go on."""

import os
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
from cli.commands import CACHE, PLAN, SMALL, write_index, write_inputs

pytestmark = pytest.mark.slow
ROWS = np.random.default_rng(0).exponential(size=(20_000, 48)).astype(np.float32)
# Per command: its arguments, what it writes, and whether what was written stays for --resume.
COMMANDS = {
    "align": (("align", "a.npy", "b.npy", "-o", "full/out.safetensors", "--accept", *SMALL), "out.safetensors", False),
    "apply": (("apply", "map.safetensors", "x.npy", "-o", "full/out.npy"), "out.npy", False),
    "apply a table": (("apply", "map.safetensors", "x.npy", "-o", "full/out.parquet"), "out.parquet", False),
    "stability": (("stability", "a.npy", "b.npy", "-o", "full/study", *PLAN, *SMALL), "study", True),
    "report": (("report", "map.safetensors", "x.npy", "x.npy", "-o", "full/page.html"), "page.html", False),
    "move": (
        ("move", "faiss:docs.faiss", "map.safetensors", "faiss:full/new.faiss", "--state", "full/state.json"),
        "new.faiss",
        True,
    ),
}
NEEDS = {"apply a table": "pyarrow", "report": "bokeh", "move": "faiss", "stability": "matplotlib"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("full")
    CACHE["JAX_COMPILATION_CACHE_DIR"] = str(tmp_path_factory.mktemp("compiled"))
    write_inputs(folder, ROWS)
    (folder / "full").mkdir()
    return folder


@pytest.fixture
def disk(folder):
    """A function that gives the folder ``full`` a disk of some KiB, or another size; skips where that is forbidden."""
    place = folder / "full"

    def mount(kibibytes, *options):
        if shutil.which("mount") is None:
            pytest.skip("no program mounts a small disk")
        command = ["mount", "-t", "tmpfs", "-o", ",".join((f"size={kibibytes}k", *options)), "tmpfs", place]
        if subprocess.run(command, capture_output=True).returncode:
            pytest.skip("no small disk may be mounted: needs root")

    yield mount
    while os.path.ismount(place):
        subprocess.run(["umount", place], check=True)


def run(folder, arguments, **options):
    return subprocess.run(
        [sys.executable, "-m", "mv2v_jax", *map(str, arguments)],
        cwd=folder,
        env={**os.environ, **CACHE},
        capture_output=True,
        text=True,
        **options,
    )


def contents(place):
    return {str(path.relative_to(place)): path.read_bytes() for path in place.rglob("*") if path.is_file()}


def skip_without_package(name, folder):
    if name in NEEDS:
        pytest.importorskip(NEEDS[name])
    if name == "move" and not (folder / "docs.faiss").exists():
        write_index(folder, ROWS)


def same(name, found, expected):
    """A page and pictures differ from run to run."""
    if name == "report":
        return found.keys() == expected.keys()
    return found == expected


@pytest.mark.parametrize("name", COMMANDS)
def test_a_disk_that_fills_up(folder, disk, name):
    skip_without_package(name, folder)
    arguments, output, resumes = COMMANDS[name]
    place = folder / "full"
    disk(100_000)
    done = run(folder, arguments)
    assert done.returncode in (0, 3), done.stderr
    expected = contents(place)
    assert output in {path.split("/")[0] for path in expected}
    whole = sum(-(-len(data) // 4096) * 4 for data in expected.values())
    subprocess.run(["umount", place], check=True)
    # An index of FAISS is written from a file of its rows, so both must fit.
    for share in (0, 0.3, 0.6, 0.9, *([1.5] if name == "move" else [])):
        disk(max(4, int(share * whole) // 4 * 4))
        done = run(folder, arguments)
        assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), (share, done.stderr)
        assert done.stderr.startswith("Error: ")
        left = contents(place)
        if not resumes:
            assert left == {}, share
        else:
            # A study consists of whole files; an index appears at the end.
            assert not any(path.endswith(".part") for path in left if name == "stability"), left.keys()
            assert name == "stability" or output not in left
            # With more space it goes on, and ends with the same bytes.
            disk(100_000, "remount")
            again = run(folder, (*arguments, "--resume"))
            assert again.returncode in (0, 3), (share, again.stderr)
            assert same(name, contents(place), expected), share
        subprocess.run(["umount", place], check=True)


@pytest.mark.parametrize("name", ["align", "apply", "apply a table"])
def test_a_limit_on_the_size_of_files(folder, name):
    """What the shell's ``ulimit -f`` does, which needs no root."""
    import resource

    skip_without_package(name, folder)
    arguments, _, _ = COMMANDS[name]

    def limit():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2048, 2048))

    done = run(folder, arguments, preexec_fn=limit)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), done.stderr
    assert contents(folder / "full") == {}


def test_rows_that_do_not_fit_into_the_folder_of_temporary_files(folder, disk, monkeypatch):
    pytest.importorskip("pyarrow")
    names = ",".join(f"v_{number}" for number in range(48))
    np.savetxt(folder / "rows.csv", ROWS[:2_000], delimiter=",", header=names, comments="")
    disk(64)
    arguments = ("apply", "map.safetensors", "rows.csv", "-o", "out.npy", "--column", "v_*")
    monkeypatch.setenv("TMPDIR", str(folder / "full"))
    done = run(folder, arguments)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), done.stderr
    assert "name a folder with more space in the variable TMPDIR" in done.stderr
    assert contents(folder / "full") == {}
    assert not (folder / "out.npy").exists()
