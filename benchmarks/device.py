"""The same table on whatever device there is: compiling, steady time per stage, restarts and their memory, quality.

python -m benchmarks.device [--rows 60000 --dimensions 768] [--presets fast,default] [--counts 1,2,4,...]
    [--batch-sizes N,...] [--repeats 3] [--json [FILE]]

Rows are synthetic, with a planted map (`benchmarks.planted`), so that nothing has to be brought along. Without FILE,
``--json`` writes to ``benchmarks/results/``, under the name of the device and the day.
"""

import argparse
import datetime
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.common import (
    METRICS,
    ROOT,
    Split,
    add_preset_option,
    compile_seconds,
    evaluate,
    format_scores,
    print_environment,
    print_requirement,
    print_table,
    read_counts,
    steady_seconds,
    write_json,
)
from benchmarks.planted import draw_pairs, draw_side, plant
from benchmarks.speed import time_stages, time_whole
from mv2v_jax import PRESETS, Config, align_restarts

RESULTS = ROOT / "benchmarks" / "results"
_NUM_EVAL = 8_192
_SEED = 0
_GIB = 2**30
# What is asked of an H100 at 60,000 x 768 a side: seconds of one default fit, and of 64 restarts.
ASKED_ROWS, ASKED_DIMENSIONS = 60_000, 768
MOST_SECONDS, ASKED_RESTARTS, MOST_RESTARTS_SECONDS = 1.0, 64, 15.0


def planted_split(rows: int, dimensions: int) -> Split:
    """Disjoint rows of two planted spaces, and pairs that judge."""
    spaces = plant(_SEED, dimensions)
    x, y_true = draw_pairs(spaces, _SEED, rows)
    x_eval, y_eval = draw_pairs(spaces, _SEED + 1, _NUM_EVAL)
    return Split(x=x, y=draw_side(spaces, _SEED, rows, 1), y_true=y_true, x_eval=x_eval, y_eval=y_eval)


def time_restarts(split: Split, config: Config, counts: list[int], batches: list[int], repeats: int) -> list[Any]:
    """Seconds, memory and top-1 of every number of restarts, in every size of batch up to it."""
    x, y, key = jnp.asarray(split.x), jnp.asarray(split.y), jax.random.key(_SEED)
    runs = []
    for count in counts:
        for batch in [size for size in batches if size <= count]:

            def fit(key, x, y, config, count=count, batch=batch):
                return align_restarts(key, x, y, count, config, batch_size=batch)

            compiled, compiling = compile_seconds(fit, key, x, y, config)
            result, steady = steady_seconds(compiled, key, x, y, config, repeats=repeats)
            memory = compiled.memory_analysis()
            run = {"restarts": count, "batch": batch, "compile": compiling, "steady": steady}
            # Not every backend tells.
            run |= {
                "temporary_bytes": memory.temp_size_in_bytes if memory else 0,
                "top1": evaluate(result.best.map, split)["top1"],
            }
            runs.append(run)
            print(f"{count} restarts, {batch} at a time: {steady:.2f} s", flush=True)
    return runs


def show_restarts(name: str, runs: list[Any]) -> None:
    """Print the table of restarts of one preset."""
    rows = [
        [
            f"{run['restarts']:,}",
            str(run["batch"]),
            f"{run['compile']:.1f}",
            f"{run['steady']:.2f}",
            f"{run['steady'] / runs[0]['steady']:.2f}",
            f"{run['temporary_bytes'] / _GIB:.2f}",
            f"{run['top1']:.3f}",
        ]
        for run in runs
    ]
    columns = ["restarts", "at a time", "compile s", "steady s", "over the first", "temporary GiB", "top-1"]
    print_table(f"{name}: restarts", columns, rows)


def judge(whole: float, runs: list[Any], asked: bool) -> list[dict[str, Any]]:
    """Hold the default preset against what is asked of an H100; ``None`` on other devices and sizes."""
    many = [run["steady"] for run in runs if run["restarts"] == ASKED_RESTARTS]
    shown = f"{min(many):.2f} s" if many else "not run"
    size = f"H100, {ASKED_ROWS:,} x {ASKED_DIMENSIONS}"
    return [
        print_requirement(
            f"{size}: one default fit in {MOST_SECONDS:g} s: {whole:.2f} s",
            whole <= MOST_SECONDS if asked else None,
        ),
        print_requirement(
            f"{size}: {ASKED_RESTARTS} restarts in {MOST_RESTARTS_SECONDS:g} s: {shown}",
            min(many) <= MOST_RESTARTS_SECONDS if asked and many else None,
        ),
    ]


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Read the arguments, time everything on the default device, print the tables; returns the figures."""
    on_cpu = jax.default_backend() == "cpu"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=ASKED_ROWS, help="a side")
    parser.add_argument("--dimensions", type=int, default=ASKED_DIMENSIONS)
    add_preset_option(parser, ["fast", "default"])
    counts = [1, 2, 4, 8] if on_cpu else [1, 2, 4, 8, 16, 32, 64, 128, 256]
    parser.add_argument("--counts", type=read_counts, default=counts, metavar="N,...", help="restarts")
    batches = [1] if on_cpu else [1, 4, 16]
    parser.add_argument("--batch-sizes", type=read_counts, default=batches, metavar="N,...", help="restarts at a time")
    parser.add_argument("--repeats", type=int, default=3, help="steady calls, of which the median counts")
    parser.add_argument("--json", nargs="?", type=Path, const=True, metavar="FILE", help="also write all figures")
    options = parser.parse_args(arguments)
    environment = print_environment()
    kind = jax.devices()[0].device_kind
    split = planted_split(options.rows, options.dimensions)
    date = datetime.datetime.now(datetime.UTC).date().isoformat()
    record: dict[str, Any] = {"environment": environment, "date": date, "rows": options.rows}
    record |= {"dimensions": options.dimensions, "presets": {}}
    for name in options.presets:
        config = PRESETS[name]()
        stages, _ = time_stages(jax.random.key(_SEED), split, config, options.repeats)
        whole, scores = time_whole(jax.random.key(_SEED), split, config, options.repeats)
        rows = [
            [stage, f"{times['compile']:.2f}", f"{times['steady']:.3f}"]
            for stage, times in [*stages.items(), ("the whole in one call", whole)]
        ]
        title = f"{name}, {options.rows:,} x {options.dimensions} a side, on {kind}"
        print_table(title, ["stage", "compile s", "steady s"], rows)
        print_table(f"{name}: quality", ["", *METRICS], [[name, *format_scores(scores)]])
        restarts = time_restarts(split, config, options.counts, options.batch_sizes, options.repeats)
        show_restarts(name, restarts)
        record["presets"][name] = {"stages": stages, "whole": whole, "scores": scores, "restarts": restarts}
    if "default" in record["presets"]:
        asked = (options.rows, options.dimensions) == (ASKED_ROWS, ASKED_DIMENSIONS) and "H100" in kind
        found = record["presets"]["default"]
        record["requirements"] = judge(found["whole"]["steady"], found["restarts"], asked)
    peak = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    if peak is not None:
        print(f"peak device memory of all of this: {peak / _GIB:.2f} GiB")
        record["peak_bytes_in_use"] = peak
    file = options.json
    if file is True:
        RESULTS.mkdir(exist_ok=True)
        file = RESULTS / f"{kind.replace(' ', '-').lower()}-{date}.json"
    write_json(file, record)
    return record


if __name__ == "__main__":
    main()
