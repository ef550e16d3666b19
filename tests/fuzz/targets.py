"""What is fuzzed, and what must hold whatever is given: one function per target, each of one drawn value."""

import contextlib
import io
import os
import sys
import warnings
from pathlib import Path
from unittest import mock

import numpy as np
from fuzz.files import METADATA, ROWS, TENSORS, TEXT, files
from hypothesis import strategies as st

from mv2v_jax.__main__ import main
from mv2v_jax.data.map_file import load_map
from mv2v_jax.errors import InputError
from mv2v_jax.stores.sources import load_embeddings

# Larger arrays are not read: the header alone is what the file is about.
_MAX_BYTES = 2**24


def check_file(drawn, folder):
    """A file is read, or refused by an `InputError`; nothing is written and nothing else is raised."""
    suffix, content = drawn
    path = Path(folder) / f"input{suffix}"
    path.write_bytes(content)
    before = sorted(os.listdir(folder))
    for read in (load_embeddings, load_map) if suffix == ".safetensors" else (load_embeddings,):
        with contextlib.suppress(InputError), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = read(path)
            if read is load_embeddings and found.nbytes < _MAX_BYTES:
                rows = np.asarray(found)
                assert rows.dtype.isnative
                assert rows.shape == found.shape
    assert sorted(os.listdir(folder)) == before


# ------------------------------------------------------------------------------------------------------------- commands

_OPTIONS = (
    "--seed",
    "--restarts",
    "--settled",
    "--preset",
    "--pairs",
    "--index-size",
    "--anchors-num-sets",
    "--column",
)
_FLAGS = ("--json", "--accept", "--resume", "--inverse", "--all-devices", "--frame", "target", "--help", "--no-plots")
_NAMES = (
    "x.npy",
    "y.npy",
    "shards",
    "shards/1.npy",
    "map.safetensors",
    "x.npz",
    "x.npz:a",
    "map.safetensors:W",
    "none.npy",
)
_OUTPUTS = (
    "out.npy",
    "out.safetensors",
    "x.npy",
    "shards/2.npy",
    "map.safetensors",
    "link.npy",
    "study",
    ".",
    "no/out.npy",
)
_VALUES = ("0", "1", "2", "-1", "1e9", "nan", "fast", "99999999999999999999", "")
_COMMANDS = ("align", "apply", "evaluate", "info", "stability")


def _can_be_typed(text):
    """No system passes a null character, or halves of characters that no bytes stand for."""
    with contextlib.suppress(UnicodeError):
        return b"\0" not in os.fsencode(text)
    return False


_argument = TEXT.filter(_can_be_typed)
_word = st.one_of(
    *map(st.sampled_from, (_NAMES, _NAMES, _OPTIONS, _FLAGS, _VALUES)), TEXT.filter(lambda t: "\0" not in t)
)
_output = st.tuples(st.just("-o"), st.one_of(st.sampled_from(_OUTPUTS), _argument))
_most_commands = st.tuples(
    st.sampled_from(_COMMANDS), st.lists(st.sampled_from(_NAMES), max_size=3), _output, st.lists(_word, max_size=4)
).map(lambda parts: [parts[0], *parts[1], *parts[2], *parts[3]])
_STORES = (
    *("faiss:x.faiss", "faiss:new.faiss", "faiss:x.npy", "faiss:", "faiss:no/new.faiss", "x.npy", "map.safetensors"),
    *(
        "lancedb:x.npy/x",
        "qdrant:x.npy/x",
        "chroma:x.npy/x",
        "chroma:none/",
        "milvus:x.npy/x",
        "postgres:/x?password=x",
        "x.npy?id=a",
    ),
)
_store = st.one_of(st.sampled_from(_STORES), _argument)
_MOVE_FLAGS = (
    "--accept",
    "--resume",
    "--dry-run",
    "--inverse",
    "--state",
    "state.json",
    "x.npy",
    "--metric",
    "dot",
    "",
)
_moves = st.tuples(
    _store, st.sampled_from(_NAMES), _store, st.lists(st.one_of(st.sampled_from(_MOVE_FLAGS), _argument), max_size=4)
).map(lambda parts: ["move", *parts[:3], *parts[3]])
commands = st.one_of(_most_commands, _most_commands, _moves)


# What a terminal obeys, the line feed aside, and what turns the direction of text.
_CONTROLS = {
    chr(code) for code in (*range(10), *range(11, 32), *range(127, 160), *range(0x202A, 0x202F), *range(0x2066, 0x206A))
}


class Reached(InputError):
    """The fit would start here; it takes too long to be fuzzed."""


def _stop(*_args, **_kwargs):
    raise Reached("the fit would start here")


def make_inputs(folder):
    """What the commands find in their folder."""
    import safetensors.numpy

    folder = Path(folder)
    for name in ("x", "y"):
        np.save(folder / f"{name}.npy", ROWS)
    np.savez(folder / "x.npz", a=ROWS, b=ROWS)
    (folder / "shards").mkdir()
    for part in range(2):
        np.save(folder / "shards" / f"{part}.npy", ROWS)
    safetensors.numpy.save_file(TENSORS, folder / "map.safetensors")
    (folder / "link.npy").symlink_to("x.npy")
    with contextlib.suppress(ImportError):
        import faiss

        index = faiss.IndexFlatIP(ROWS.shape[1])
        index.add(ROWS)
        faiss.write_index(index, str(folder / "x.faiss"))


def _contents(folder):
    files = (path for path in sorted(Path(folder).rglob("*")) if path.is_file())
    # A link stays as it is where the file that it leads to is replaced.
    return {path: os.readlink(path).encode() if path.is_symlink() else path.read_bytes() for path in files}


def check_command(arguments, folder):
    """A command ends with 0, 2, 3 or 4 and at most one sentence; no input changes, and nothing is half-written."""
    inputs = _contents(folder)
    out, error = io.StringIO(), io.StringIO()
    with contextlib.ExitStack() as stack:
        for place in ("mv2v_jax.cli.align.run_fit", "mv2v_jax.cli.stability.run_study"):
            stack.enter_context(mock.patch(place, _stop))
        stack.enter_context(mock.patch.object(sys, "argv", ["mv2v", *arguments]))
        stack.enter_context(mock.patch.dict(os.environ, {"MV2V_COMPILATION_CACHE": ""}))
        stack.enter_context(contextlib.chdir(folder))
        stack.enter_context(contextlib.redirect_stdout(out))
        stack.enter_context(contextlib.redirect_stderr(error))
        try:
            main()
            code = None
        except SystemExit as ended:
            code = ended.code
    assert code in (0, 2, 3, 4), (code, error.getvalue())
    assert len(error.getvalue().splitlines()) <= 1, error.getvalue()
    assert "Traceback" not in error.getvalue()
    assert not _CONTROLS & set(out.getvalue() + error.getvalue())
    after = _contents(folder)
    changed = {path for path in {*inputs, *after} if inputs.get(path) != after.get(path)}
    # A command that succeeds may write its output over a file that it does not read.
    named = [Path(folder) / word.removeprefix("faiss:") for word in arguments]
    assert all(code == 0 and named.count(path) == 1 for path in changed), (changed, code)
    for path in changed:
        path.unlink()
        if path.name == "link.npy":
            path.symlink_to("x.npy")
        elif path in inputs:
            path.write_bytes(inputs[path])


def check_metadata(metadata, folder):
    """Whatever the metadata of a map hold, the map is shown."""
    import safetensors.numpy

    path = Path(folder) / "odd.safetensors"
    clean = lambda text: text.encode("utf-8", "ignore").decode()  # noqa: E731
    safetensors.numpy.save_file(TENSORS, path, metadata={clean(name): clean(text) for name, text in metadata.items()})
    check_command(["info", "odd.safetensors"], folder)
    check_command(["info", "odd.safetensors", "--json"], folder)
    path.unlink()


# --------------------------------------------------------------------------------------------------------------- arrays

_dtypes = st.sampled_from(["<f4", ">f4", "<f2", "<f8", ">f8", "<i4", "|b1", "<c8", "<U3", "|O", "|u1", "<g"])
_values = st.sampled_from(
    [0.0, 1.0, -1.0, np.nan, np.inf, -np.inf, 1e-45, 1e-38, 1e-20, 1e19, 1e30, 3e38, 1e300, 65504.0]
)


@st.composite
def arrays(draw):
    """An array of few shapes, so that little is compiled, and of any values; sometimes masked, a list or a view."""
    shape = draw(st.sampled_from([(3, 4), (1, 4), (0, 4), (3, 5), (4,), (3, 0), (), (1, 3, 4)]))
    size = int(np.prod(shape))
    values = draw(st.lists(st.one_of(_values, st.floats(width=32)), min_size=size, max_size=size))
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        array = np.array(values, np.float64).astype(draw(_dtypes)).reshape(shape)
    form = draw(st.sampled_from(["array", "list", "masked", "fortran", "view"]))
    if form == "list":
        return array.tolist()
    if form == "masked" and array.dtype.kind in "fiu":
        return np.ma.masked_array(array, mask=np.arange(size).reshape(shape) % 5 == draw(st.integers(0, 9)))
    if form == "view" and array.ndim == 2:
        return np.repeat(array, 2, axis=1)[:, ::2]
    return np.asfortranarray(array) if form == "fortran" else array


def check_array(array, folder):
    """`apply` maps finite rows to unit rows or zero rows and others to NaN, as NumPy in float64 does, or refuses."""
    from mv2v_jax import Centering, LinearMap, apply
    from mv2v_jax.portable.numpy_map import from_map

    turn = np.eye(4, dtype=np.float32)[:, ::-1].copy()
    centering = Centering(mean=np.zeros(4, np.float32), scale=np.float32(1))
    linear_map = LinearMap(W=turn, source=centering, target=centering)
    for mapping in (lambda rows: apply(linear_map, rows), from_map(linear_map).apply):
        try:
            found = np.asarray(mapping(array), np.float64)
        except InputError:
            continue
        rows = np.asarray(array, np.float64)
        assert found.shape == rows.shape
        with np.errstate(all="ignore"):
            seen = rows.astype(np.float32).astype(np.float64)
        finite = np.isfinite(seen).all(axis=-1)
        assert np.isnan(found[~finite]).all()
        # What float32 cannot represent may count as zero.
        largest = np.abs(seen).max(axis=-1, initial=0)
        long = finite & (largest > 1e-30)
        scaled = seen[long] / largest[long][..., None]
        expected = scaled[..., ::-1] / np.linalg.norm(scaled, axis=-1, keepdims=True)
        np.testing.assert_allclose(found[long], expected, atol=2e-3)


TARGETS = {
    "files": (files(), check_file),
    "commands": (commands, check_command),
    "metadata": (METADATA, check_metadata),
    "arrays": (arrays(), check_array),
}
