"""How near each stage comes to what the machine can do: its work over its time, beside measured peaks.

python -m benchmarks.roofline [--data DIR] [--rows N --eval E] [--presets fast,default] [--repeats 3] [--json FILE]

The limit of a stage is the longer of its matrix products and decompositions at the measured peaks of matrix products,
of float32 and of bfloat16 summed in float32, and of its bytes at the measured bandwidth. No decomposition comes near
such a peak, on any machine: where they are most of a stage, the limit is a lower bound that nothing reaches.
"""

import argparse
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.common import (
    METRICS,
    add_data_options,
    add_preset_option,
    evaluate,
    format_scores,
    load_split,
    print_environment,
    print_requirement,
    print_table,
    steady_seconds,
    write_json,
)
from benchmarks.speed import time_stages
from benchmarks.work import Work
from mv2v_jax import PRESETS
from mv2v_jax.ops.knn import rough_product

LEAST_MATMUL_SHARE = 0.7
MOST_OVER_LIMIT = 2.0
# A stage counts as bound by its products where they would take at least this share of its time at the peak.
_BOUND_SHARE = 0.5
_PEAK_SIZE = 4_096
_COPY_ENTRIES = 2**26
_PASSES = 20


def measure_peaks(repeats: int) -> dict[str, float]:
    """FLOP a second of large products, and bytes a second of a pass that reads and writes."""
    square = jax.random.normal(jax.random.key(0), (_PEAK_SIZE, _PEAK_SIZE))
    _, product = steady_seconds(jax.jit(lambda a: a @ a), square, repeats=repeats)
    _, half = steady_seconds(jax.jit(lambda a: rough_product(a, a)), square, repeats=repeats)
    # Many passes in one call: the first write to new memory costs more than any pass.
    long = jnp.ones(_COPY_ENTRIES, jnp.float32)
    passes = jax.jit(lambda a: jax.lax.fori_loop(0, _PASSES, lambda _, b: b + 1, a))
    _, copy = steady_seconds(passes, long, repeats=repeats)
    flop = 2 * _PEAK_SIZE**3
    return {
        "flop_per_second": flop / product,
        "half_flop_per_second": flop / half,
        "bytes_per_second": 2 * _PASSES * long.nbytes / copy,
    }


def product_seconds(work: Work, peaks: dict[str, float]) -> float:
    """What the matrix products would take at their peaks."""
    return work.matmul_flop / peaks["flop_per_second"] + work.half_flop / peaks["half_flop_per_second"]


def limit_seconds(work: Work, peaks: dict[str, float]) -> float:
    """The least time the work could take."""
    computing = product_seconds(work, peaks) + work.decomposition_flop / peaks["flop_per_second"]
    return max(computing, work.bytes / peaks["bytes_per_second"])


def _rows(stages: dict[str, tuple[float, Work]], peaks: dict[str, float]) -> list[list[str]]:
    rows = []
    for name, (seconds, work) in stages.items():
        flop = work.matmul_flop + work.half_flop + work.decomposition_flop
        limit = limit_seconds(work, peaks)
        rows.append(
            [
                name,
                f"{seconds:.3f}",
                f"{work.matmul_flop / 1e9:.1f}",
                f"{work.half_flop / 1e9:.1f}",
                f"{work.decomposition_flop / 1e9:.1f}",
                f"{work.bytes / 1e9:.2f}",
                f"{flop / seconds / 1e9:.1f}",
                f"{product_seconds(work, peaks) / seconds:.2f}",
                f"{work.bytes / seconds / peaks['bytes_per_second']:.2f}",
                f"{limit:.3f}",
            ]
        )
    return rows


def main(arguments: list[str] | None = None) -> list[dict[str, Any]]:
    """Read the arguments, time and count every stage, print the tables; returns the verdicts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_data_options(parser)
    add_preset_option(parser, ["fast", "default"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--repeats", type=int, default=3, help="steady calls, of which the median counts")
    options = parser.parse_args(arguments)
    environment = print_environment()
    split, data = load_split(options)
    peaks = measure_peaks(options.repeats)
    print(
        f"measured peaks: {peaks['flop_per_second'] / 1e9:.0f} GFLOP/s (float32 product, {_PEAK_SIZE:,}^3), "
        f"{peaks['half_flop_per_second'] / 1e9:.0f} (bfloat16, summed in float32), "
        f"{peaks['bytes_per_second'] / 1e9:.1f} GB/s (read and write)"
    )
    record: dict[str, Any] = {"environment": environment, "data": data, "peaks": peaks, "stages": {}}
    verdicts = []
    for name in options.presets:
        counted: dict[str, Work] = {}
        times, result = time_stages(
            jax.random.key(options.seed), split, PRESETS[name](), options.repeats, on_work=counted.__setitem__
        )
        stages = {stage: (time["steady"], counted[stage]) for stage, time in times.items()}
        whole = Work()
        for _, work in stages.values():
            whole = whole + work
        seconds = sum(time for time, _ in stages.values())
        limit = sum(limit_seconds(work, peaks) for _, work in stages.values())
        columns = [
            "stage",
            "s",
            "f32 GFLOP",
            "bf16 GFLOP",
            "SVD GFLOP",
            "GB",
            "GFLOP/s",
            "of peak",
            "of GB/s",
            "limit s",
        ]
        rows = [*_rows(stages, peaks), *_rows({"all": (seconds, whole)}, peaks)]
        rows[-1][-1] = f"{limit:.3f}"
        print_table(name, columns, rows)
        scores = evaluate(result.map, split)
        print_table("its map", ["preset", *METRICS], [[name, *format_scores(scores)]])
        bound = {
            stage: product_seconds(work, peaks) / time
            for stage, (time, work) in stages.items()
            if product_seconds(work, peaks) >= _BOUND_SHARE * time
        }
        shown = ", ".join(f"{stage} {share:.2f}" for stage, share in bound.items()) or "none"
        passed = min(bound.values()) >= LEAST_MATMUL_SHARE if bound else None
        verdicts.append(print_requirement(f"{name}: stages bound by products at 0.7 of the peak: {shown}", passed))
        text = f"{name}: the whole within twice the sum of its limits: {seconds:.2f} s, {seconds / limit:.2f} times"
        verdicts.append(print_requirement(text, seconds <= MOST_OVER_LIMIT * limit))
        record["stages"][name] = {
            stage: {"seconds": time, **vars(work), "limit_seconds": limit_seconds(work, peaks)}
            for stage, (time, work) in stages.items()
        }
        record.setdefault("scores", {})[name] = scores
    write_json(options.json, {**record, "requirements": verdicts})
    return verdicts


if __name__ == "__main__":
    main()
