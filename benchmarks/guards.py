"""Does a map recognise rows of another space? False alarms on other texts, and alarms on other rows.

    python -m benchmarks.guards [--data FOLDER] [--files 20] [--seed 0] [--json FILE]

A profile is made of the first half of every file CORPUS.ENCODER.npy in the folder. Small files are drawn from the
second halves: of the same and of other corpora of the encoder, mixed or of one topic, which must pass; and changed rows
and rows of other encoders of the same dimension, which must not. Corpora under one encoder have one suffix.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.cluster import KMeans

from benchmarks.common import (
    BUNDLED_ENCODERS,
    add_folder_option,
    add_json_option,
    add_seed_option,
    make_parser,
    print_environment,
    print_table,
    write_json,
)
from mv2v_jax.data.demo import load_encoder
from mv2v_jax.profiles.mismatch import find_mismatch
from mv2v_jax.profiles.profile import SpaceProfile, profile_rows, unit_rows

SIZES = (10, 100, 1_000)
NUM_TOPICS, TOPIC_ROWS = 20, 5_000
REFLECTED = "x * -1"

Files = dict[tuple[str, str], np.ndarray]
Counts = dict[str, dict[int, list[int]]]


def read_files(folder: Path | None) -> Files:
    """Rows by corpus and encoder, in float32, without zero rows."""
    if folder is None:
        found = {("wordnet", encoder): load_encoder(encoder)[0] for encoder in BUNDLED_ENCODERS}
    else:
        names = [path.name.split(".") for path in sorted(folder.glob("*.*.npy"))]
        found = {(name[0], name[1]): np.load(folder / ".".join(name), mmap_mode="r") for name in names}
    rows = {name: np.asarray(array, np.float32) for name, array in found.items()}
    return {name: array[(array != 0).any(axis=1)] for name, array in rows.items()}


def changes(rng: np.random.Generator, d: int) -> dict[str, Callable[[np.ndarray], np.ndarray]]:
    """What may happen to rows on their way to a map, by name."""
    turn = np.linalg.qr(rng.normal(size=(d, d)))[0].astype(np.float32)

    def change_lengths(rows: np.ndarray) -> np.ndarray:
        units, lengths = unit_rows(rows)
        if np.ptp(np.quantile(lengths, [0.05, 0.95])) > 0.02:
            return units
        return rows * rng.lognormal(0, 0.3, size=(len(rows), 1)).astype(np.float32)

    return {
        "rotated at random": lambda rows: rows @ turn,
        "columns in reverse order": lambda rows: rows[:, ::-1],
        "x * 7 + 1": lambda rows: rows * 7 + 1,
        REFLECTED: lambda rows: -rows,
        "second half of the columns zero": lambda rows: np.where(np.arange(d) < d // 2, rows, 0),
        "normalised, or not, unlike the fitting rows": change_lengths,
    }


def draw_files(
    rows: np.ndarray, topics: np.ndarray, size: int, num_files: int, rng: np.random.Generator
) -> Iterator[tuple[str, np.ndarray]]:
    """Small files, half of them mixed and half of one topic each."""
    for number in range(num_files):
        yield "mixed", rows[rng.choice(len(rows), size, replace=False)]
        pool = np.flatnonzero(topics == number % NUM_TOPICS)
        if len(pool) >= size:
            yield "one topic", rows[rng.choice(pool, size, replace=False)]


def measure(files: Files, num_files: int, seed: int) -> tuple[Counts, Counts]:
    """Alarms and files by kind and size: on rows that must pass, and on rows that must not."""
    rng = np.random.default_rng(seed)
    profiles = {name: profile_rows(rows[: len(rows) // 2]) for name, rows in files.items()}
    unseen = {name: rows[len(rows) // 2 :] for name, rows in files.items()}
    topics = {
        name: KMeans(NUM_TOPICS, n_init=1, max_iter=20, random_state=seed)
        .fit(unit_rows(rows[:TOPIC_ROWS])[0])
        .predict(unit_rows(rows)[0])
        for name, rows in unseen.items()
    }
    passing: Counts = {}
    alarming: Counts = {}

    def count(counts: Counts, kind: str, size: int, profile: SpaceProfile | None, rows: np.ndarray) -> None:
        assert profile is not None
        alarms = counts.setdefault(kind, {}).setdefault(size, [0, 0])
        alarms[0] += find_mismatch(profile, rows) is not None
        alarms[1] += 1

    for (corpus, encoder), profile in profiles.items():
        for name, rows in unseen.items():
            if rows.shape[1] != files[corpus, encoder].shape[1]:
                continue
            for size in SIZES:
                for kind, drawn in draw_files(rows, topics[name], size, num_files, rng):
                    if name[1] != encoder:
                        count(alarming, "another encoder", size, profile, drawn)
                        continue
                    of = "the fitted corpus" if name[0] == corpus else "another corpus"
                    count(passing, f"{of}, {kind}", size, profile, drawn)
                    for change, function in changes(rng, drawn.shape[1]).items():
                        named = f"{change}, {of}" if change == REFLECTED else change
                        count(alarming, named, size, profile, function(drawn))
    return passing, alarming


def tabulate(counts: Counts) -> list[list[str]]:
    """One row per kind: alarms of files for every size."""
    none = [0, 0]
    return [
        [kind, *("{:,} of {:,}".format(*by_size.get(size, none)) for size in SIZES)] for kind, by_size in counts.items()
    ]


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Measure and print both tables; returns the counts."""
    parser = make_parser(__doc__)
    add_folder_option(parser)
    parser.add_argument("--files", type=int, default=20, help="files per pair of corpora, size and kind (default: 20)")
    add_seed_option(parser)
    add_json_option(parser)
    options = parser.parse_args(arguments)
    environment = print_environment()
    passing, alarming = measure(read_files(options.data), options.files, options.seed)
    header = ["", *(f"{size:,} rows" for size in SIZES)]
    print_table("alarms on unseen texts of the same encoder: all are false", header, tabulate(passing))
    print_table("alarms on other rows: all are right", header, tabulate(alarming))
    counts = {"passing": passing, "alarming": alarming}
    write_json(options.json, {"environment": environment, **counts})
    return counts


if __name__ == "__main__":
    main()
