"""Applying a map to files: any number of rows, kills and resumes, refused input, and failing disks."""

import errno
import json
import os
import signal
import subprocess
import sys
import tempfile
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mv2v_jax import Centering, LinearMap, apply, invert
from mv2v_jax.data.map_file import save_map
from mv2v_jax.data.resumable_npy import SourceFile, resumable_npy
from mv2v_jax.errors import InputError
from mv2v_jax.finish import Finish
from mv2v_jax.runs.apply_shards import apply_to_file, source_files
from mv2v_jax.stores.sources import load_embeddings

N, BLOCK = 230, 10


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr("mv2v_jax.runs.apply_shards._BLOCK_NUMBERS", BLOCK * 6)
    monkeypatch.setattr("mv2v_jax.data.resumable_npy._SAVE_BYTES", 1)


def make_map(seed=0):
    key = jax.random.key(seed)
    return LinearMap(
        W=jax.random.normal(key, (6, 4)),
        source=Centering(mean=jnp.arange(6.0), scale=jnp.float32(0.5)),
        target=Centering(mean=jnp.arange(4.0), scale=jnp.float32(2.0)),
    )


@pytest.fixture
def folder(tmp_path, rng):
    """A folder with twelve shards."""
    (tmp_path / "x").mkdir()
    rows = rng.normal(size=(N, 6)).astype(np.float16)
    for part, shard in enumerate(np.array_split(rows, 12)):
        np.save(tmp_path / "x" / f"{part:02d}.npy", shard)
    return tmp_path


def expected(folder, linear_map=None, frame="centred"):
    rows = np.concatenate([np.load(path) for path in sorted((folder / "x").iterdir())])
    return np.asarray(apply(linear_map or make_map(), rows, frame=frame))


class Stop(Exception):
    pass


def run(folder, *, linear_map=None, source="x", frame="centred", resume=False, stop_at=None):
    """Apply the map, or stop after ``stop_at`` rows; returns the reported numbers of finished rows."""
    seen = []

    def on_step(stage, done, total):
        seen.append(done)
        if stop_at is not None and done >= stop_at:
            raise Stop

    rows = load_embeddings(str(folder / source))
    files = source_files(folder / source, rows)
    done = apply_to_file(
        linear_map or make_map(),
        rows,
        files,
        folder / "out.npy",
        "x",
        finish=Finish(frame),
        resume=resume,
        on_step=on_step,
    )
    assert done.num_mapped == len(rows) - (seen[0] - BLOCK if seen else len(rows))
    return seen


def left(folder):
    return sorted(path.name for path in folder.iterdir() if path.name not in ("x", "x2", "out.npy"))


PARTS = [".out.npy.part", ".out.npy.part.json"]


@pytest.mark.parametrize("frame", ["centred", "target"])
def test_shards_are_mapped_as_rows_in_memory(folder, frame):
    assert run(folder, frame=frame)[-1] == N
    found = np.load(folder / "out.npy")
    assert found.dtype == np.float16
    np.testing.assert_allclose(found, expected(folder, frame=frame), atol=2e-3)
    assert left(folder) == []


@pytest.mark.parametrize("stop_at", [BLOCK, 100, N])
def test_stopped_and_resumed_it_ends_with_the_same_bytes(folder, stop_at):
    run(folder)
    whole = (folder / "out.npy").read_bytes()
    (folder / "out.npy").unlink()
    with pytest.raises(Stop):
        run(folder, stop_at=stop_at)
    assert not (folder / "out.npy").exists()
    assert left(folder) == PARTS
    seen = run(folder, resume=True)
    # Resuming starts at a whole block, and the last block is short.
    assert len(seen) == (N - stop_at // BLOCK * BLOCK) // BLOCK
    assert (folder / "out.npy").read_bytes() == whole
    assert left(folder) == []


def test_killed_between_its_last_two_steps_it_goes_on(folder):
    with pytest.raises(Stop):
        run(folder, stop_at=N)
    (folder / PARTS[0]).replace(folder / "out.npy")
    whole = (folder / "out.npy").read_bytes()
    assert run(folder, resume=True) == []
    assert (folder / "out.npy").read_bytes() == whole
    assert left(folder) == []


def test_rows_beyond_float32_are_named(folder):
    rows = np.ones((40, 6))
    rows[33, 2] = 1e300
    (folder / "x2").mkdir()
    np.save(folder / "x2" / "0.npy", rows)
    with pytest.raises(InputError, match=r"must be finite, .* first in row 33 \(as float32\); rows before it are kept"):
        run(folder, source="x2")


def test_without_resume_it_starts_over(folder):
    with pytest.raises(Stop):
        run(folder, stop_at=100)
    assert run(folder)[0] == BLOCK
    np.testing.assert_allclose(np.load(folder / "out.npy"), expected(folder), atol=2e-3)
    # There may be nothing to resume.
    assert run(folder, resume=True)[0] == BLOCK


def test_another_job_is_refused(folder):
    with pytest.raises(Stop):
        run(folder, stop_at=100)
    parts = {name: (folder / name).read_bytes() for name in PARTS}
    (folder / "x2").mkdir()
    for path in (folder / "x").iterdir():
        np.save(folder / "x2" / f"other-{path.name}", np.load(path))
    for changes, other in (
        ({"linear_map": make_map(1)}, "map"),
        ({"linear_map": invert(invert(make_map(1)))}, "map"),
        ({"frame": "target"}, "frame"),
        ({"source": "x2"}, "input"),
        ({"source": "x2/other-03.npy"}, "shape, input"),
    ):
        with pytest.raises(InputError, match=f"were made from another {other}; start out.npy over without --resume"):
            run(folder, resume=True, **changes)
    assert {name: (folder / name).read_bytes() for name in PARTS} == parts
    assert run(folder, resume=True)[0] == 100 + BLOCK


def test_a_shard_that_changed_is_mapped_again(folder):
    with pytest.raises(Stop):
        run(folder, stop_at=200)
    path = folder / "x" / "07.npy"
    np.save(path, -np.load(path))
    os.utime(path, ns=(1, 1))
    # Shards 0 and 1 have 20 rows, the others 19.
    assert run(folder, resume=True)[0] == 130 + BLOCK
    np.testing.assert_allclose(np.load(folder / "out.npy"), expected(folder), atol=2e-3)


@pytest.mark.parametrize("shard", [0, 7])
def test_nan_is_named_by_its_shard_and_nothing_is_lost(folder, shard):
    path = folder / "x" / f"{shard:02d}.npy"
    rows = np.load(path)
    broken = rows.copy()
    broken[4, 1] = np.nan
    np.save(path, broken)
    kept = "; rows before it are kept: repair it and continue with --resume" if shard else ""
    with pytest.raises(InputError, match=rf"^x must be finite, .* first in shard .*/{shard:02d}\.npy row 4{kept}$"):
        run(folder)
    assert left(folder) == (PARTS if shard else [])
    assert not (folder / "out.npy").exists()
    np.save(path, rows)
    assert run(folder, resume=True)[0] == (140 if shard else BLOCK)
    np.testing.assert_allclose(np.load(folder / "out.npy"), expected(folder), atol=2e-3)


def test_a_shard_cut_short_meanwhile_is_named(folder):
    rows = load_embeddings(str(folder / "x"))
    path = folder / "x" / "07.npy"
    content = path.read_bytes()
    path.write_bytes(content[:-5])
    source = source_files(folder / "x", rows)
    with pytest.raises(InputError, match=r"07\.npy was cut short while it was read: 5 bytes are missing"):
        apply_to_file(
            *(make_map(), rows, source, folder / "out.npy", "x"), finish=Finish(), resume=False, on_step=lambda *_: None
        )
    path.write_bytes(content)
    assert run(folder, resume=True)[0] > 100
    np.testing.assert_allclose(np.load(folder / "out.npy"), expected(folder), atol=2e-3)


def no_space(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_disk_too_small_is_found_out_before_any_work(folder, monkeypatch):
    (folder / "out.npy").write_text("old")
    monkeypatch.setattr("os.posix_fallocate", no_space)
    with pytest.raises(InputError, match=r"out\.npy cannot be written: No space left on device$"):
        run(folder)
    assert left(folder) == []
    assert (folder / "out.npy").read_text() == "old"


def test_a_disk_that_fills_up_loses_nothing(folder, monkeypatch):
    """As on file systems where disk space cannot be reserved."""
    calls = []
    fsync = os.fsync
    monkeypatch.setattr("os.fsync", lambda file: no_space() if len(calls) >= 12 else calls.append(fsync(file)))
    with pytest.raises(InputError, match=r"No space left on device; rows so far are kept: continue with --resume$"):
        run(folder)
    monkeypatch.setattr("os.fsync", fsync)
    assert left(folder) == PARTS
    # The file and its manifest are synchronised in turn, so 12 calls of fsync write six blocks.
    assert run(folder, resume=True)[0] == 6 * BLOCK + BLOCK
    np.testing.assert_allclose(np.load(folder / "out.npy"), expected(folder), atol=2e-3)


def test_a_really_full_disk(folder):
    """A file system of 64 KiB, if this process may mount one."""
    small = folder / "small"
    small.mkdir()
    if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", small]).returncode:
        pytest.skip("needs the right to mount")
    try:
        rows = np.ones((20_000, 6), np.float16)
        job = ([SourceFile("x.npy", 20_000, 1, 1)], small / "out.npy", "x")
        with pytest.raises(InputError, match=r"out\.npy cannot be written: No space left on device$"):
            apply_to_file(make_map(), rows, *job, finish=Finish(), resume=False, on_step=lambda *_: None)
        assert list(small.iterdir()) == []
    finally:
        subprocess.run(["umount", small], check=True)


def test_a_read_only_folder_is_named_before_any_work(folder, monkeypatch):
    def refuse(**_):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    # Root can write to any folder, so an error stands in for a read-only file system.
    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    with pytest.raises(InputError, match=r"out\.npy cannot be written: Read-only file system$"):
        run(folder)
    assert left(folder) == []


def test_two_processes_do_not_write_one_file(folder):
    with resumable_npy(folder / "out.npy", (2, 3), np.dtype("f4"), {}, [], block_rows=1, resume=False) as out:
        with pytest.raises(InputError, match="is being written by another process"):
            run(folder)
        out.write(np.ones((2, 3)))
    np.testing.assert_array_equal(np.load(folder / "out.npy"), np.ones((2, 3), np.float32))


@pytest.mark.parametrize("content", ["", "{", "[]", '{"source": [], "made_by": {}, "rows_done": "many"}'])
def test_a_damaged_manifest_is_named(folder, content):
    with pytest.raises(Stop):
        run(folder, stop_at=100)
    (folder / PARTS[1]).write_text(content)
    with pytest.raises(InputError, match=r"\.out\.npy\.part\.json must list .*start out\.npy over without --resume"):
        run(folder, resume=True)
    assert left(folder) == PARTS


def test_a_part_that_is_gone_is_not_taken_for_zeros(folder):
    with pytest.raises(Stop):
        run(folder, stop_at=100)
    (folder / PARTS[0]).unlink()
    with pytest.raises(InputError, match="lists 100 written rows, found fewer; start without --resume"):
        run(folder, resume=True)
    assert run(folder)[0] == BLOCK


# Blocks of 50 rows that take a little time each, so that the test can kill the process between them.
PROGRAM = """
import time
import mv2v_jax.runs.apply_shards, mv2v_jax.data.resumable_npy
mv2v_jax.runs.apply_shards._BLOCK_NUMBERS = 300
mv2v_jax.data.resumable_npy._SAVE_BYTES = 1
write = mv2v_jax.data.resumable_npy.PartFile.write
mv2v_jax.data.resumable_npy.PartFile.write = lambda self, rows: (time.sleep(0.02), write(self, rows))
from mv2v_jax.__main__ import main
main()
"""


def test_killed_at_any_moment_and_resumed_it_ends_with_the_same_bytes(folder, rng):
    rows = rng.normal(size=(5_000, 6)).astype(np.float16)
    np.save(folder / "rows.npy", rows)
    save_map(folder / "map.safetensors", make_map())

    def command(output, *more):
        return [sys.executable, "-c", PROGRAM, "apply", "map.safetensors", "rows.npy", "-o", output, *more]

    done = subprocess.run(command("whole.npy"), cwd=folder, capture_output=True, text=True, timeout=200)
    assert (done.returncode, done.stderr) == (0, "")
    assert "5,000 rows, 6 to 4 dimensions, centred, " in done.stdout
    assert "rows per second: whole.npy" in done.stdout
    manifest = folder / f"{PARTS[1]}"
    # One process is killed, resumed, killed, resumed, killed and resumed.
    for least in (0, 1_000, 3_000):
        process = subprocess.Popen(command("out.npy", "--resume"), cwd=folder, stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 100
        while not (folder / PARTS[0]).exists() or rows_done(manifest) < least:
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not (folder / "out.npy").exists()
    kept = rows_done(manifest)
    done = subprocess.run(command("out.npy", "--resume"), cwd=folder, capture_output=True, text=True, timeout=200)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"5,000 rows, {kept:,} of them from an earlier run, " in done.stdout
    assert (folder / "out.npy").read_bytes() == (folder / "whole.npy").read_bytes()
    assert not list(folder.glob(".*"))


def rows_done(manifest):
    return json.loads(manifest.read_text())["rows_done"] if manifest.exists() else 0


@pytest.mark.parametrize(("dtype", "length"), [(np.float32, 1e-40), (np.float32, 1e-35), (np.float64, 1e-300)])
def test_rows_too_short_for_float32_are_named(tmp_path, dtype, length):
    rows = np.ones((3, 6), dtype)
    rows[1] *= length
    rows[2] = 0
    np.save(tmp_path / "x.npy", rows)
    with pytest.raises(InputError, match="float32 can represent, found a shorter one, first in row 1"):
        run(tmp_path, source="x.npy")
    assert not (tmp_path / "out.npy").exists()
