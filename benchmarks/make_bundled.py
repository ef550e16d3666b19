"""Make the bundled rows: 14,000 WordNet glosses under two encoders, as int8 with one scale per row.

    python -m benchmarks.make_bundled --data FOLDER [--out FOLDER]

Reads the first 14,000 rows of ``wordnet.minilm.npy``, ``wordnet.wordllama.npy`` and ``wordnet.texts.json.gz``. Another
run on the same data writes the same bytes.
"""

import gzip
import json
import struct
from pathlib import Path

import numpy as np
from safetensors.numpy import save

from benchmarks.common import (
    BUNDLED_ENCODERS,
    check_folder,
    evaluate,
    make_parser,
    print_table,
    read_rows,
    split_rows,
)
from mv2v_jax import oracle

FIT_ROWS, EVAL_ROWS = 12_000, 2_000
METADATA = {
    "title": "14,000 WordNet 3.0 glosses (`lemma: gloss`) under two encoders, row i of both the same text",
    "num_eval": str(EVAL_ROWS),
    "protocol": (
        "The last num_eval rows judge. Of the others, a fit sees the first half of the source and the second half of "
        "the target: no text in common."
    ),
    "format": "embedding = int8 row * its float32 scale; scale = largest absolute entry of the row / 127",
    "texts": "WordNet 3.0 Copyright 2006 by Princeton University. All rights reserved. WordNet 3.0 licence",
    "minilm": "sentence-transformers/all-MiniLM-L6-v2, Apache-2.0",
    "wordllama": "WordLlama l2_supercat, 256 dimensions, MIT",
    "made_by": "benchmarks/make_bundled.py: the first 14,000 rows of 60,000 shuffled glosses, encoded in float16",
}


def quantise(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """int8 rows ``[n, d]`` and their float32 scales ``[n]``; a zero row gets the scale 0."""
    rows = rows.astype(np.float32)
    scale = np.abs(rows).max(axis=1) / np.float32(127)
    return np.rint(rows / np.where(scale > 0, scale, 1)[:, None]).astype(np.int8), scale


def sort_header(file: bytes) -> bytes:
    """The same safetensors file with the names in its header sorted, because the format leaves their order open."""
    (length,) = struct.unpack("<Q", file[:8])
    header = json.loads(file[8 : 8 + length])
    text = json.dumps(header, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    # The tensors must start at a multiple of eight bytes.
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + file[8 + length :]


def cosine_error(rows: np.ndarray, restored: np.ndarray) -> float:
    """Largest ``1 - cos`` between a row and its restored int8 version."""
    rows, restored = rows.astype(np.float64), restored.astype(np.float64)
    lengths = np.linalg.norm(rows, axis=1) * np.linalg.norm(restored, axis=1)
    return float(np.max(1 - np.sum(rows * restored, axis=1)[lengths > 0] / lengths[lengths > 0]))


def oracle_top1(source: np.ndarray, target: np.ndarray) -> float:
    """Top-1 of the best orthogonal map under the protocol."""
    split = split_rows(source, target, EVAL_ROWS)
    return evaluate(oracle(split.x, split.y_true, split.y), split)["top1"]


def main(arguments: list[str] | None = None) -> None:
    """Write both files and show the loss of int8."""
    parser = make_parser(__doc__)
    parser.add_argument("--data", type=Path, metavar="FOLDER", required=True, help="folder of the 60,000 rows")
    package = Path(__file__).parent.parent / "demo_data" / "mv2v_jax_demo"
    parser.add_argument(
        "--out", type=Path, metavar="FOLDER", default=package, help="folder to write to (default: that of the package)"
    )
    options = parser.parse_args(arguments)
    folder = check_folder(options.data)
    num_rows = FIT_ROWS + EVAL_ROWS

    tensors, original, restored = {}, {}, {}
    for name in BUNDLED_ENCODERS:
        original[name] = read_rows(folder, name)[0][:num_rows]
        tensors[name], tensors[f"{name}_scale"] = quantise(original[name])
        restored[name] = tensors[name] * tensors[f"{name}_scale"][:, None]
    with gzip.open(options.data / "wordnet.texts.json.gz", "rt", encoding="utf-8") as file:
        texts = json.load(file)[:num_rows]

    files = {
        "wordnet14k.safetensors": sort_header(save(tensors, METADATA)),
        # Without a time stamp, so that every run writes the same file.
        "wordnet14k.texts.json.gz": gzip.compress(json.dumps(texts, ensure_ascii=False).encode(), 9, mtime=0),
    }
    options.out.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (options.out / name).write_bytes(content)
        print(f"{name}: {len(content):,} bytes")

    errors = [[name, f"{cosine_error(original[name], restored[name]):.1e}"] for name in BUNDLED_ENCODERS]
    print_table("largest cosine error of int8", ["encoder", "1 - cos"], errors)
    scores = [
        [f"{a} to {b}", f"{oracle_top1(original[a], original[b]):.4f}", f"{oracle_top1(restored[a], restored[b]):.4f}"]
        for a, b in (BUNDLED_ENCODERS, BUNDLED_ENCODERS[::-1])
    ]
    print_table(f"top-1 of the oracle among {EVAL_ROWS:,}", ["pair", "float16", "int8"], scores)


if __name__ == "__main__":
    main()
