"""No command writes over what it reads, or under the name of another format; each input by every path to it."""

import json
import os
import sys

import numpy as np
import pytest

from mv2v_jax.__main__ import main
from mv2v_jax.data.map_file import save_map
from mv2v_jax.linear_map import Centering, LinearMap

ROWS = np.random.default_rng(0).normal(size=(40, 4)).astype(np.float32)
NUM_CLUSTERS = ("--anchors-num-clusters", "6")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with every kind of input, and one identity map under two suffixes."""
    tmp_path = tmp_path / "data"
    tmp_path.mkdir()
    centering = Centering(mean=np.zeros(4, np.float32), scale=np.float32(1))
    identity = LinearMap(W=np.eye(4, dtype=np.float32), source=centering, target=centering)
    for name in ("x", "y", "px", "py"):
        np.save(tmp_path / f"{name}.npy", ROWS)
        save_map(tmp_path / f"{name}.safetensors", identity)
        (tmp_path / f"{name}_shards").mkdir()
        for part in range(3):
            np.save(tmp_path / f"{name}_shards" / f"{part}.npy", ROWS)
    save_map(tmp_path / "map.safetensors", identity)
    # A map under the name of another format can be read, so it must be safe too.
    (tmp_path / "map.npy").write_bytes((tmp_path / "map.safetensors").read_bytes())
    monkeypatch.chdir(tmp_path)
    return tmp_path


def contents(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def refuse(arguments, monkeypatch, capfd):
    """What a command says that ends with exit code 2 and one sentence."""
    monkeypatch.setattr(sys, "argv", ["mv2v", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    out, error = capfd.readouterr()
    assert (ended.value.code, out) == (2, ""), error
    assert error.startswith("Error: ")
    assert len(error.splitlines()) == 1
    return error


ALIGN = ("align", "x.safetensors:W", "y.safetensors:W", "--pairs", "px.safetensors:W", "py.safetensors:W")
FOLDERS = ("align", "x_shards", "y_shards", "--pairs", "px_shards", "py_shards")
# Per command, the inputs that a file of the right suffix can be.
INPUTS = {
    **{f"align {name}": ((*ALIGN, *NUM_CLUSTERS), f"{name}.safetensors") for name in ("x", "y", "px", "py")},
    "apply x": (("apply", "map.safetensors", "x.npy"), "x.npy"),
    "apply a shard": (("apply", "map.safetensors", "x_shards"), "x_shards/2.npy"),
    "apply the map": (("apply", "map.npy", "x.npy"), "map.npy"),
    "apply the map, inverted": (("apply", "map.npy", "x.npy", "--inverse", "--resume"), "map.npy"),
}


def spell_again(folder, file, spelling):
    """Another path to the file, with the same suffix."""
    link = folder.parent / f"another{file.suffix}"
    if spelling == "absolute":
        return file.absolute()
    if spelling == "dots":
        return f"{file.parent}/../{file.parent.resolve().name}/{file.name}"
    if spelling == "link":
        link.symlink_to(file.absolute())
    elif spelling == "link to a link":
        (link.parent / "between").symlink_to(file.absolute())
        link.symlink_to("between")
    elif spelling == "hard link":
        os.link(file, link)
    elif spelling == "folder link":
        (link.parent / "linked").symlink_to(file.parent.absolute())
        return link.parent / "linked" / file.name
    return link if link.exists() else file


@pytest.mark.parametrize("spelling", ["same", "absolute", "dots", "link", "link to a link", "hard link", "folder link"])
@pytest.mark.parametrize("name", INPUTS)
def test_an_input_is_not_written_over(folder, name, spelling, monkeypatch, capfd):
    arguments, file = INPUTS[name]
    output = spell_again(folder, folder / file, spelling)
    before = contents(folder)
    error = refuse((*arguments, "-o", output), monkeypatch, capfd)
    assert "must not be an input" in error or "must be outside the folder" in error
    assert contents(folder) == before


@pytest.mark.parametrize("input_is_link", [False, True])
def test_the_file_behind_a_link_is_not_written_over(folder, input_is_link, monkeypatch, capfd):
    (folder / "link.npy").symlink_to("x.npy")
    source, output = ("link.npy", "x.npy") if input_is_link else ("x.npy", "link.npy")
    before = contents(folder)
    assert "must not be an input" in refuse(("apply", "map.safetensors", source, "-o", output), monkeypatch, capfd)
    assert contents(folder) == before
    assert (folder / "link.npy").is_symlink()


@pytest.mark.parametrize("name", ["x", "y", "px", "py"])
@pytest.mark.parametrize("output", ["new.safetensors", "0.safetensors"])
def test_nothing_is_added_to_a_folder_of_shards(folder, name, output, monkeypatch, capfd):
    """The next command would read it as a shard, or refuse the folder."""
    error = refuse((*FOLDERS, "-o", f"{name}_shards/{output}", *NUM_CLUSTERS), monkeypatch, capfd)
    assert f"must be outside the folder {name}_shards" in error


@pytest.mark.parametrize("output", ["x_shards", "x_shards/study", "py_shards/a/b", "."])
def test_a_study_is_no_folder_of_inputs(folder, output, monkeypatch, capfd):
    before = contents(folder)
    arguments = ("stability", *FOLDERS[1:], "-o", output, "--no-plots", *NUM_CLUSTERS)
    error = refuse(arguments, monkeypatch, capfd)
    assert any(part in error for part in ("must be outside the folder", "a folder without inputs", "not be an input"))
    assert contents(folder) == before


@pytest.mark.parametrize("suffix", [".npz", ".npy", ".pt", ".csv", ".json", "", ".safetensors"])
@pytest.mark.parametrize("command", ["align", "apply"])
def test_a_file_is_named_by_its_format(folder, command, suffix, monkeypatch, capfd):
    right = {"align": ".safetensors", "apply": ".npy"}[command]
    if suffix == right:
        pytest.skip("the suffix of the format")
    arguments = (*ALIGN, *NUM_CLUSTERS) if command == "align" else ("apply", "map.safetensors", "x.npy")
    before = contents(folder)
    error = refuse((*arguments, "-o", f"out{suffix}"), monkeypatch, capfd)
    assert f"must end in {right}" in error or f"must end in one of {right}, .parquet" in error
    assert contents(folder) == before


def test_the_hidden_name_of_an_unfinished_file_is_no_link_to_follow(folder, monkeypatch, capfd):
    (folder / ".out.npy.part").symlink_to("y.npy")
    before = contents(folder)
    error = refuse(("apply", "map.safetensors", "x.npy", "-o", "out.npy"), monkeypatch, capfd)
    assert "out.npy cannot be written" in error
    assert contents(folder) == before


@pytest.mark.parametrize("file", ["map.safetensors", "x.npy", "table.jsonl", "notes.json", "link.json"])
def test_the_state_of_a_move_is_no_other_file(folder, file, monkeypatch, capfd):
    pytest.importorskip("faiss")
    lines = (json.dumps({"id": number, "v": row.tolist()}) for number, row in enumerate(ROWS))
    (folder / "table.jsonl").write_text("\n".join(lines))
    (folder / "notes.json").write_text('{"a": 1}')
    (folder / "link.json").symlink_to("map.safetensors")
    before = contents(folder)
    arguments = ("move", "table.jsonl?id=id", "map.safetensors", "faiss:new.faiss", "--state", file)
    assert "must be new or of an earlier move, found another file" in refuse(arguments, monkeypatch, capfd)
    assert contents(folder) == before


def test_the_demo_writes_over_no_other_rows(folder, monkeypatch, capfd):
    before = contents(folder)
    error = refuse(("demo", "--export", "."), monkeypatch, capfd)
    assert "x.npy must not exist, found a file with other rows" in error
    assert contents(folder) == before
