"""How near is each stage to the limits of the machine? Its counted work over its time, beside measured peaks.

    python -m benchmarks.roofline [--data FOLDER] [--rows N --eval E] [--presets fast,default] [--repeats 3]
        [--json FILE]

The limit of a stage is the larger of two times: its matrix products and decompositions at the measured peaks of matrix
products (in float32, and in bfloat16 summed in float32), and its bytes at the measured bandwidth. No decomposition
comes near the peak of products on any machine. In stages that are mostly decompositions the limit is therefore a lower
bound that cannot be reached.
"""

from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.common import (
    METRICS,
    add_data_options,
    add_preset_option,
    add_repeats_option,
    add_seed_option,
    evaluate,
    format_scores,
    load_split,
    make_parser,
    print_environment,
    print_table,
    steady_seconds,
    write_json,
)
from benchmarks.stages import run_stages
from benchmarks.work import Work
from mv2v_jax import Config
from mv2v_jax.ops.knn import rough_product

# A stage is bound by its products if they would take at least this share of its time at their peak.
_BOUND_SHARE = 0.5
_PEAK_SIZE = 4_096
_COPY_ENTRIES = 2**26
_PASSES = 20


def measure_peaks(repeats: int) -> dict[str, float]:
    """Operations per second of large matrix products, and bytes per second of a pass that reads and writes."""
    square = jax.random.normal(jax.random.key(0), (_PEAK_SIZE, _PEAK_SIZE))
    _, product = steady_seconds(jax.jit(lambda a: a @ a), square, repeats=repeats)
    _, half = steady_seconds(jax.jit(lambda a: rough_product(a, a)), square, repeats=repeats)
    # Many passes in one call: the first write to new memory costs more than any later pass.
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
    """Seconds of the matrix products at their peaks."""
    return work.matmul_flop / peaks["flop_per_second"] + work.half_flop / peaks["half_flop_per_second"]


def limit_seconds(work: Work, peaks: dict[str, float]) -> float:
    """The shortest time that the work could take."""
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


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Time and count every stage and print the tables; returns the figures."""
    parser = make_parser(__doc__)
    add_data_options(parser)
    add_preset_option(parser, ["fast", "default"])
    add_seed_option(parser)
    add_repeats_option(parser)
    options = parser.parse_args(arguments)
    environment = print_environment()
    split, data = load_split(options)
    peaks = measure_peaks(options.repeats)
    print(
        f"measured peaks: {peaks['flop_per_second'] / 1e9:.0f} GFLOP/s (float32 product, {_PEAK_SIZE:,}^3), "
        f"{peaks['half_flop_per_second'] / 1e9:.0f} GFLOP/s (bfloat16, summed in float32), "
        f"{peaks['bytes_per_second'] / 1e9:.1f} GB/s (read and write)"
    )
    record: dict[str, Any] = {"environment": environment, "data": data, "peaks": peaks, "presets": {}}
    for name in options.presets:
        ran, result = run_stages(jax.random.key(options.seed), split, Config.preset(name), options.repeats)
        stages = {stage_name: (stage.seconds, stage.work()) for stage_name, stage in ran.items()}
        whole = Work()
        for _, work in stages.values():
            whole = whole + work
        seconds = sum(time for time, _ in stages.values())
        limit = sum(limit_seconds(work, peaks) for _, work in stages.values())
        columns = ["stage", "s", "f32 GFLOP", "bf16 GFLOP", "decomp. GFLOP", "GB", "GFLOP/s"]
        columns += ["of product peak", "of bandwidth", "limit s"]
        rows = [*_rows(stages, peaks), *_rows({"all": (seconds, whole)}, peaks)]
        rows[-1][-1] = f"{limit:.3f}"
        print_table(name, columns, rows)
        scores = evaluate(result.map, split)
        print_table(f"{name}: its map", ["preset", *METRICS], [[name, *format_scores(scores)]])
        bound = {
            stage: product_seconds(work, peaks) / time
            for stage, (time, work) in stages.items()
            if product_seconds(work, peaks) >= _BOUND_SHARE * time
        }
        shown = ", ".join(f"{stage} {share:.2f}" for stage, share in bound.items()) or "none"
        print(f"{name}: share of the product peak in the stages bound by products: {shown}")
        print(f"{name}: the whole takes {seconds:.2f} s, {seconds / limit:.2f} times the sum of its limits")
        record["presets"][name] = {
            "stages": {
                stage: {"seconds": time, **vars(work), "limit_seconds": limit_seconds(work, peaks)}
                for stage, (time, work) in stages.items()
            },
            "seconds": seconds,
            "limit_seconds": limit,
            "bound": bound,
            "scores": scores,
        }
    write_json(options.json, record)
    return record


if __name__ == "__main__":
    main()
