"""Every bad input ends in one sentence and exit code 2; nothing is written."""

import os
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from mv2v_jax.__main__ import main
from mv2v_jax.data.map_file import save_map
from mv2v_jax.linear_map import Centering, LinearMap


@pytest.fixture(scope="module")
def bad(data):
    """The folder of ``data`` with a map of its dimensions and every kind of bad file."""
    linear_map = LinearMap(
        W=jnp.eye(16, 12),
        source=Centering(mean=jnp.zeros(16), scale=jnp.ones(())),
        target=Centering(mean=jnp.zeros(12), scale=jnp.ones(())),
    )
    save_map(data / "map.safetensors", linear_map)
    _bad_rows(data)
    return data


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
        "foreign": np.repeat(x[:1], 50, axis=0).astype(">f4"),
        "equal_or_zero": np.concatenate([np.zeros_like(x[:5]), np.repeat(x[:1], 50, axis=0)]),
        "huge": x * np.float32(1e25),
        "tiny": x * np.float32(1e-25),
        "short_eval": x[:50],
    }.items():
        np.save(folder / f"{name}.npy", rows)


ALIGN = ("align", "{bad}", "y.npy", "-o", "out.safetensors", "--anchors-num-clusters", "6")
BAD_INPUTS = {
    "NaN": (ALIGN, "nan.npy", "nan.npy must be finite, found NaN or infinity in 2 rows, first in row 7"),
    "not two-dimensional": (ALIGN, "flat.npy", "flat.npy must be two-dimensional, one embedding per row, found shape"),
    "empty": (ALIGN, "empty.npy", "empty.npy must have at least 6 rows, found 0"),
    "fewer rows than clusters": (ALIGN, "few.npy", "few.npy must have at least 6 rows, found 5"),
    "all rows equal": (ALIGN, "equal.npy", "equal.npy must hold different rows, found 50 equal ones"),
    "object array": (ALIGN, "object.npy", "object.npy must hold numbers, found an object array"),
    "integer labels": (ALIGN, "labels.npy", "labels.npy must hold floating-point embeddings, found dtype int64"),
    "complex": (ALIGN, "complex.npy", "found dtype complex64"),
    "foreign byte order, all rows equal": (ALIGN, "foreign.npy", "foreign.npy must hold different rows, found 50"),
    "all rows equal or zero": (ALIGN, "equal_or_zero.npy", "must hold different rows, found 55 equal ones"),
    "too large to square": (ALIGN, "huge.npy", "which can be squared, found a longer one, first in row 0"),
    "too small to square": (ALIGN, "tiny.npy", "which can be squared, found a mean length of "),
    "an archive named .npy": (ALIGN, "archive.npy", "archive.npy cannot be read"),
    "--coordinator alone": ((*ALIGN, "--coordinator", "a:1"), "nan.npy", "must come with --distributed"),
    "--distributed without other processes": (
        (*ALIGN, "--distributed"),
        "nan.npy",
        "--distributed must find the other processes",
    ),
    "devices that do not divide": (
        (*ALIGN, "--all-devices", "--row-devices", "3"),
        "nan.npy",
        "row devices must divide the",
    ),
    "--row-devices alone": (
        (*ALIGN, "--row-devices", "2"),
        "nan.npy",
        "--row-devices must come with --all-devices or --distributed, found it alone; add one of them",
    ),
    "no arguments": (("align",), "", "Error: Missing argument 'X'. See mv2v align --help."),
    "unknown option": ((*ALIGN, "--clusters", "6"), "x.npy", "See mv2v align --help."),
    "sizes that are no numbers": (
        ("stability", "{bad}", "y.npy", "-o", "study", "--no-plots", "--sizes", "many"),
        "x.npy",
        "--sizes must be whole numbers with commas between, found 'many'; write for example --sizes 1000,2000",
    ),
    "sizes smaller than the number of clusters": (
        ("stability", "{bad}", "y.npy", "-o", "study", "--no-plots", "--sizes", "20,300"),
        "x.npy",
        "--sizes must be at least anchors.num_clusters (30), found 20; use larger sizes or fewer clusters",
    ),
    "truncated": (ALIGN, "cut.npy", "cut.npy cannot be read, it is damaged or cut short"),
    "truncated shard": (ALIGN, "cut_shards", "cut_shards/07.npy cannot be read, it is damaged or cut short"),
    "shard of another dimension": (
        ALIGN,
        "wide_shards",
        "wide_shards/07.npy must have 16 columns as 00.npy has, found 32",
    ),
    "shard of another dtype": (ALIGN, "double_shards", "double_shards/07.npy must hold float32 as 00.npy does"),
    "NaN in a shard": (ALIGN, "nan_shards", "found NaN or infinity in 1 rows, first in shard nan_shards/07.npy row 17"),
    "not only shards": (ALIGN, "mixed", "mixed must hold only .npy shards, found notes.txt; move it elsewhere"),
    "apply, NaN in a shard": (
        ("apply", "map.safetensors", "{bad}", "-o", "out.npy"),
        "nan_shards",
        "nan_shards must be finite, found NaN or infinity, first in shard nan_shards/07.npy row 17",
    ),
    "missing file": (ALIGN, "none.npy", "none.npy must be a file, found nothing of that name"),
    "unknown suffix": (ALIGN, "x.xyz", "found suffix .xyz"),
    "missing key": (ALIGN, "two.npz:c", "two.npz must hold an array named c, found a, b"),
    "no key": (ALIGN, "two.npz", "two.npz holds several arrays, name one as two.npz:KEY; found a, b"),
    "config out of range": (
        (*ALIGN, "--published-smoothing", "1.5"),
        "x.npy",
        "published.smoothing must be a number from 0.0 to 1.0, found 1.5",
    ),
    "config below its minimum": (
        (*ALIGN, "--anchors-num-starts", "0"),
        "x.npy",
        "anchors.num_starts must be a whole number of at least 1, found 0",
    ),
    "config of wrong type": ((*ALIGN, "--anchors-num-starts", "many"), "x.npy", "'many' is not a valid integer"),
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
def test_bad_input(bad, name, monkeypatch, capfd):
    """In this process, because a process of its own takes seconds to start."""
    before = sorted(bad.iterdir())
    arguments, file, message = BAD_INPUTS[name]
    monkeypatch.chdir(bad)
    monkeypatch.setattr(sys, "argv", ["mv2v", *(str(part).format(bad=file) for part in arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    out, error = capfd.readouterr()
    assert ended.value.code == 2, error
    assert message in error
    assert error.startswith("Error: ")
    assert len(error.splitlines()) == 1
    assert out == ""
    assert sorted(bad.iterdir()) == before
