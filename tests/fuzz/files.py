"""Files of every format as hypothesis draws them: real ones that are damaged, and headers that no library writes."""

import io
import json
import struct
import zipfile

import numpy as np
import safetensors.numpy
from hypothesis import strategies as st

ROWS = np.random.default_rng(0).normal(size=(12, 4)).astype(np.float32)
TENSORS = {
    "W": np.eye(4, dtype=np.float32),
    **{name: np.zeros(4, np.float32) for name in ("mean_x", "mean_y")},
    **{name: np.array(1, np.float32) for name in ("scale_x", "scale_y")},
}
INTEGERS = st.sampled_from([0, 1, 2, 4, 12, 48, -1, 127, 255, 2**15, 2**31 - 1, 2**31, 2**32, 2**63 - 1, 2**63, 2**64])
TEXT = st.one_of(
    st.text(max_size=12),
    st.sampled_from(["\x1b[2J", "[/x]", "../../etc/passwd", "\n", "W", "9" * 400, "\ud800"]),
)
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), INTEGERS, st.floats(), TEXT),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(TEXT, inner, max_size=4)),
    max_leaves=8,
)
METADATA = st.dictionaries(
    st.one_of(
        TEXT,
        st.sampled_from(["verdict", "confidence", "estimated_top1", "closeness", "config", "n", "m", "agreement"]),
        st.sampled_from(["reason", "restarts", "restart_agreement", "score", "basins", "format", "held_out_rows"]),
    ),
    st.one_of(TEXT, JSON.map(json.dumps)),
    max_size=8,
)


def _npy(rows=ROWS, **options):
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, rows, **options)
    return buffer.getvalue()


def _npz(**arrays):
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


def _tables():
    import pyarrow
    from pyarrow import parquet

    table = pyarrow.table(
        {
            "id": list(range(12)),
            "text": ["a"] * 12,
            "v": pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(ROWS.reshape(-1)), 4),
            "w": ROWS.tolist(),
        }
    )
    written, file, stream = io.BytesIO(), io.BytesIO(), io.BytesIO()
    parquet.write_table(table, written)
    with pyarrow.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)
    with pyarrow.ipc.new_stream(stream, table.schema) as writer:
        writer.write_table(table)
    return written.getvalue(), file.getvalue(), stream.getvalue()


def seeds():
    """Real files by their suffix, from which damaged ones are made."""
    parquet, arrow, stream = _tables()
    lines = "".join(json.dumps({"id": i, "v": row}) + "\n" for i, row in enumerate(ROWS.tolist()))
    text = "id,v\n" + "".join(f'{i},"{row}"\n' for i, row in enumerate(ROWS.tolist()))
    return {
        ".npy": [_npy(), _npy(np.asfortranarray(ROWS)), _npy(ROWS.astype(">f2")), _npy(version=(2, 0))],
        ".npz": [_npz(a=ROWS), _npz(a=ROWS, b=ROWS)],
        ".safetensors": [safetensors.numpy.save(TENSORS, {"verdict": "aligned"}), safetensors.numpy.save({"x": ROWS})],
        ".parquet": [parquet],
        ".arrow": [arrow, stream],
        ".jsonl": [lines.encode()],
        ".csv": [text.encode()],
        ".tsv": [text.replace(",", "\t").encode()],
    }


SEEDS = seeds()


@st.composite
def damaged(draw, suffix):
    """A real file of which some bytes are changed, removed, repeated or replaced by odd numbers."""
    content = bytearray(draw(st.sampled_from(SEEDS[suffix])))
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, max(0, len(content) - 1)))
        length = draw(st.integers(0, 16))
        change = draw(st.sampled_from(["flip", "cut", "remove", "repeat", "insert", "number", "text"]))
        if change == "flip" and content:
            content[place] ^= draw(st.integers(1, 255))
        elif change == "cut":
            del content[place:]
        elif change == "remove":
            del content[place : place + length]
        elif change == "repeat":
            content[place:place] = content[place : place + length] * draw(st.integers(1, 50))
        elif change == "insert":
            content[place:place] = draw(st.binary(max_size=16))
        elif change == "number":
            number = (draw(INTEGERS) % 2**64).to_bytes(8, "little")[: draw(st.sampled_from([1, 2, 4, 8]))]
            content[place : place + len(number)] = number
        else:
            content[place : place + length] = draw(TEXT).encode("utf-8", "surrogatepass")
    return bytes(content)


@st.composite
def npy_headers(draw):
    """A `.npy` file with a header of another author."""
    descr = st.one_of(
        st.sampled_from(["'<f4'", "'>f8'", "'|O'", "'<U5'", "'|V0'", "'<c8'", "('<f4',(2,))", "[('a','<f4')]", "[]"]),
        TEXT.map(repr),
        INTEGERS.map(repr),
    )
    shape = st.one_of(st.lists(INTEGERS, max_size=3).map(lambda sizes: repr(tuple(sizes))), JSON.map(repr))
    header = (
        f"{{'descr': {draw(descr)}, 'fortran_order': {draw(st.sampled_from(['True', 'False', '0', 'None', 'x']))}, "
        f"'shape': {draw(shape)}{draw(st.sampled_from(['', ', 1: 2', ', []: 2', ',', ')', '(' * 300]))}}}"
    ).encode("utf-8", "surrogatepass")
    size = draw(st.one_of(st.just(len(header)), INTEGERS)) % 2**16
    version = draw(st.sampled_from([b"\x01\x00", b"\x02\x00", b"\x03\x00", b"\x09\x09"]))
    length = struct.pack("<H", size) if version == b"\x01\x00" else struct.pack("<I", size)
    return b"\x93NUMPY" + version + length + header + b"\n" + draw(st.binary(max_size=64))


@st.composite
def safetensors_headers(draw):
    """A `.safetensors` file with a header of another author."""
    entry = st.fixed_dictionaries(
        {
            "dtype": st.one_of(st.sampled_from(["F32", "F16", "BF16", "I64", "BOOL", "F8_E4M3", "C64"]), TEXT),
            "shape": st.one_of(st.lists(INTEGERS, max_size=3), JSON),
            "data_offsets": st.one_of(st.lists(INTEGERS, min_size=2, max_size=2), JSON),
        }
    )
    names = st.one_of(st.sampled_from(list(TENSORS)), TEXT)
    header = draw(st.one_of(st.dictionaries(names, st.one_of(entry, JSON), max_size=6), JSON))
    if isinstance(header, dict):
        header["__metadata__"] = draw(st.one_of(METADATA, JSON))
    text = json.dumps(header).encode()
    if draw(st.booleans()):
        # The first name once more.
        text = text.replace(b"{", b'{"W":{"dtype":"F32","shape":[],"data_offsets":[0,4]},', 1)
    size = draw(st.one_of(st.just(len(text)), INTEGERS)) % 2**64
    return struct.pack("<Q", size) + text + draw(st.binary(max_size=64))


@st.composite
def archives(draw):
    """A zip archive under the name of NumPy's, with members that NumPy does not write."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", draw(st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]))) as archive:
        for _ in range(draw(st.integers(0, 3))):
            name = draw(st.one_of(st.sampled_from(["a.npy", "a", "../a.npy", "/tmp/a.npy", "b.npy/"]), TEXT))
            archive.writestr(
                name.replace("\x00", "").encode("utf-8", "ignore").decode() or "a",
                draw(st.one_of(npy_headers(), damaged(".npy"), st.binary(max_size=50))),
            )
    return buffer.getvalue()


@st.composite
def tables(draw):
    """Columns of odd types and lengths, written by Arrow."""
    import pyarrow
    from pyarrow import parquet

    numbers = st.one_of(st.none(), st.floats(width=32), st.integers(-5, 5))
    column = st.one_of(
        st.lists(st.lists(numbers, max_size=4), min_size=3, max_size=3),
        st.lists(st.lists(st.lists(st.floats(width=32), max_size=2), max_size=2), min_size=3, max_size=3),
        st.lists(numbers, min_size=3, max_size=3),
        st.lists(st.one_of(st.none(), TEXT.filter(lambda text: text != "\ud800")), min_size=3, max_size=3),
    )
    names = [name.encode("utf-8", "ignore").decode() for name in draw(st.lists(TEXT, min_size=1, max_size=3))]
    arrays = []
    for _ in names:
        try:
            arrays.append(pyarrow.array(draw(column)))
        except pyarrow.ArrowException:
            arrays.append(pyarrow.nulls(3))
    buffer = io.BytesIO()
    try:
        parquet.write_table(pyarrow.Table.from_arrays(arrays, names), buffer)
    except pyarrow.ArrowException:
        return draw(damaged(".parquet"))
    return buffer.getvalue()


@st.composite
def files(draw):
    """A suffix and the bytes of a file."""
    suffix = draw(st.sampled_from(list(SEEDS)))
    made = {".npy": npy_headers(), ".safetensors": safetensors_headers(), ".npz": archives(), ".parquet": tables()}
    lines = st.lists(st.one_of(JSON.map(json.dumps), TEXT), max_size=5).map("\n".join)
    text = lines.map(lambda written: written.encode("utf-8", "surrogatepass"))
    other = made.get(suffix, text if suffix in (".jsonl", ".csv", ".tsv") else damaged(suffix))
    return suffix, draw(st.one_of(damaged(suffix), other))
