"""What does a fit cost on this device? Times by stage beside their limits, restarts and their memory, and quality.

    python -m benchmarks.device [--rows 60000 --dimensions 768] [--presets fast,default] [--counts 1,2,4,...]
        [--batch-sizes N,...] [--repeats 3] [--json [FILE]]

The limit of a stage is that of `benchmarks.roofline`, by peaks measured on the device. Rows are synthetic, with a
planted map (`benchmarks.planted`), so no data has to be copied to the machine. Without FILE, ``--json`` writes to
``benchmarks/results/``, to a file named after the device and the date.
"""

import datetime
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.common import (
    METRICS,
    Split,
    add_preset_option,
    add_repeats_option,
    compile_seconds,
    evaluate,
    format_scores,
    make_parser,
    print_environment,
    print_table,
    read_counts,
    steady_seconds,
    write_json,
)
from benchmarks.planted import draw_pairs, draw_side, plant
from benchmarks.roofline import limit_seconds, measure_peaks
from benchmarks.speed import stage_times, time_whole
from benchmarks.stages import run_stages
from mv2v_jax import Config, align_restarts

RESULTS = Path(__file__).parent / "results"
_NUM_EVAL = 8_192
_SEED = 0
_GIB = 2**30


def planted_split(rows: int, dimensions: int) -> Split:
    """Disjoint rows of two planted spaces, and pairs to evaluate on."""
    spaces = plant(_SEED, dimensions)
    x, y_true = draw_pairs(spaces, _SEED, rows)
    x_eval, y_eval = draw_pairs(spaces, _SEED + 1, _NUM_EVAL)
    return Split(x=x, y=draw_side(spaces, _SEED, rows, 1), y_true=y_true, x_eval=x_eval, y_eval=y_eval)


def time_restarts(split: Split, config: Config, counts: list[int], batches: list[int], repeats: int) -> list[Any]:
    """Seconds, memory and top-1 for every number of restarts and every batch size up to it."""
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
            # Some backends do not report it.
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


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Time everything on the default device and print the tables; returns the figures."""
    on_cpu = jax.default_backend() == "cpu"
    parser = make_parser(__doc__)
    parser.add_argument("--rows", type=int, default=60_000, help="rows per space (default: 60,000)")
    parser.add_argument("--dimensions", type=int, default=768, help="dimensions of both spaces (default: 768)")
    add_preset_option(parser, ["fast", "default"])
    counts = [1, 2, 4, 8] if on_cpu else [1, 2, 4, 8, 16, 32, 64, 128, 256]
    parser.add_argument("--counts", type=read_counts, default=counts, metavar="N,...", help="numbers of restarts")
    batches = [1] if on_cpu else [1, 4, 16]
    parser.add_argument(
        "--batch-sizes", type=read_counts, default=batches, metavar="N,...", help="numbers of restarts side by side"
    )
    add_repeats_option(parser)
    parser.add_argument(
        "--json", nargs="?", type=Path, const=True, metavar="FILE", help="also write all figures, to FILE if given"
    )
    options = parser.parse_args(arguments)
    environment = print_environment()
    kind = jax.devices()[0].device_kind
    split = planted_split(options.rows, options.dimensions)
    key, peaks = jax.random.key(_SEED), measure_peaks(options.repeats)
    date = datetime.datetime.now(datetime.UTC).date().isoformat()
    record: dict[str, Any] = {"environment": environment, "date": date, "rows": options.rows}
    record |= {"dimensions": options.dimensions, "peaks": peaks, "presets": {}}
    for name in options.presets:
        config = Config.preset(name)
        ran = run_stages(key, split, config, options.repeats)[0]
        stages = stage_times(ran)
        for stage, times in stages.items():
            times["limit"] = limit_seconds(ran[stage].work(), peaks)
        limit = sum(times["limit"] for times in stages.values())
        whole, scores = time_whole(key, split, config, options.repeats)
        rows = [
            [stage, f"{times['compile']:.2f}", f"{times['steady']:.3f}", f"{times['limit']:.3f}"]
            for stage, times in [*stages.items(), ("the whole in one call", {**whole, "limit": limit})]
        ]
        title = f"{name}, {options.rows:,} rows of {options.dimensions} dimensions per space, on {kind}"
        print_table(title, ["stage", "compile s", "steady s", "limit s"], rows)
        print_table(f"{name}: quality", ["", *METRICS], [[name, *format_scores(scores)]])
        restarts = time_restarts(split, config, options.counts, options.batch_sizes, options.repeats)
        show_restarts(name, restarts)
        record["presets"][name] = {"stages": stages, "whole": whole, "scores": scores, "restarts": restarts}
    peak = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    if peak is not None:
        print(f"peak device memory of the whole run: {peak / _GIB:.2f} GiB")
        record["peak_bytes_in_use"] = peak
    file = options.json
    if file is True:
        RESULTS.mkdir(exist_ok=True)
        file = RESULTS / f"{kind.replace(' ', '-').lower()}-{date}.json"
    write_json(file, record)
    return record


if __name__ == "__main__":
    main()
