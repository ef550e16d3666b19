"""Does `synchronize` find a wrong map among several spaces, and repair it? One map per pair, one of them broken.

    python -m benchmarks.synchronize [--data FOLDER] [--rows 20000] [--eval 2000] [--supervised] [--json FILE]

The spaces are MiniLM, WordLlama, a rotated and noisy copy of each, and LSA if the folder has ``wordnet.lsa.npy``. The
maps between MiniLM, WordLlama and the copies are fitted by the preset ``fast`` from different texts. Maps to LSA are
fitted on true pairs, because LSA does not align without them. With ``--supervised`` all maps are fitted on true pairs.
Apart from these, labels only evaluate.
"""

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.common import (
    add_folder_option,
    add_json_option,
    check_folder,
    make_parser,
    print_environment,
    print_table,
    read_rows,
    seconds_of,
    write_json,
)
from mv2v_jax import Config, LinearMap, align, synchronize
from mv2v_jax.evaluation import metrics

BROKEN = ("minilm", "wordllama")
NOISE = 0.1


def load_spaces(folder: Path | None, num_rows: int) -> dict[str, np.ndarray]:
    """Rows of every space by name, of the same texts: the encoders, rotated copies of them, and LSA if it is there."""
    spaces = {name: np.asarray(read_rows(folder, name)[0][:num_rows], np.float32) for name in BROKEN}
    rng = np.random.default_rng(0)
    for name, rows in list(spaces.items()):
        d = rows.shape[1]
        turned = rows @ np.linalg.qr(rng.standard_normal((d, d)))[0].astype(np.float32)
        noise = rng.standard_normal(rows.shape).astype(np.float32) * np.linalg.norm(rows, axis=1).mean() / d**0.5
        spaces[f"{name} copy"] = turned + NOISE * noise
    if folder is not None and (folder / "wordnet.lsa.npy").exists():
        spaces["lsa"] = np.asarray(read_rows(folder, "lsa")[0][:num_rows], np.float32)
    return spaces


def fit_pairs(spaces: dict[str, np.ndarray], num_fit: int, supervised: bool) -> dict[tuple[str, str], LinearMap]:
    """A map for every pair of spaces, each fitted independently."""
    half = num_fit // 2
    maps = {}
    for a, b in itertools.combinations(spaces, 2):
        x, y = spaces[a][:half], spaces[b][half:num_fit]
        if supervised or "lsa" in (a, b):
            maps[a, b] = metrics.oracle(jnp.asarray(x), jnp.asarray(spaces[b][:half]), jnp.asarray(y))
        else:
            maps[a, b] = align(jax.random.key(0), jnp.asarray(x), jnp.asarray(y), Config.fast()).map
    return maps


def break_map(linear_map: LinearMap) -> LinearMap:
    """The map followed by a random rotation of its target, which leaves nothing of it."""
    d = linear_map.W.shape[1]
    turn = np.linalg.qr(np.random.default_rng(1).standard_normal((d, d)))[0]
    return dataclasses.replace(linear_map, W=linear_map.W @ jnp.asarray(turn, linear_map.W.dtype))


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Fit, break, synchronise and print the table; returns the figures."""
    parser = make_parser(__doc__)
    add_folder_option(parser)
    parser.add_argument("--rows", type=int, default=20_000, help="number of texts to use (default: 20,000)")
    parser.add_argument("--eval", type=int, default=2_000, help="number of them to evaluate on (default: 2,000)")
    parser.add_argument("--supervised", action="store_true", help="fit all maps on true pairs, not only those to LSA")
    add_json_option(parser)
    options = parser.parse_args(arguments)
    environment = print_environment()
    spaces = load_spaces(check_folder(options.data), options.rows)
    num_fit = len(spaces["minilm"]) - options.eval
    if num_fit < 2:
        parser.error("--rows must be more than --eval")
    maps = fit_pairs(spaces, num_fit, options.supervised)
    given = {**maps, BROKEN: break_map(maps[BROKEN])}
    found, seconds = seconds_of(synchronize, given)

    def top1(linear_map, pair):
        rows = (jnp.asarray(spaces[name][num_fit:]) for name in pair)
        return float(metrics.evaluate(linear_map, *rows).top1)

    records = [
        {
            "pair": " - ".join(pair),
            "fitted": top1(maps[pair], pair),
            "given": top1(given[pair], pair),
            "synchronised": top1(found.maps[pair], pair),
            "agreement": float(found.agreement[pair]),
            "cycle_residual": float(found.cycle_residual[pair]),
            "wrong": bool(found.wrong[pair]),
        }
        for pair in maps
    ]
    print_table(
        f"top-1 on {options.eval:,} texts, {num_fit // 2:,} per space to fit; {seconds:.1f} s with compile time",
        ["pair", "fitted", "given", "synchronised", "agreement", "cycle residual", "called wrong"],
        [
            [
                record["pair"],
                *(f"{record[name]:.3f}" for name in ("fitted", "given", "synchronised", "agreement", "cycle_residual")),
                "yes" if record["wrong"] else "",
            ]
            for record in records
        ],
    )
    wrong = [record["pair"] for record in records if record["wrong"]]
    broken = next(record for record in records if record["pair"] == " - ".join(BROKEN))
    print(
        f"broken: {broken['pair']}; called wrong: {', '.join(wrong) or 'none'}; top-1 of the repaired map less that of "
        f"the fitted one: {broken['synchronised'] - broken['fitted']:+.3f}"
    )
    record = {"environment": environment, "pairs": records, "seconds": seconds}
    write_json(options.json, record)
    return record


if __name__ == "__main__":
    main()
