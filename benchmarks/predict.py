"""What would a fit cost on a device that is not here? Every stage lowered for it, and its counted work at public peaks.

    python -m benchmarks.predict [--rows 60000 --dimensions 768] [--presets fast,default] [--devices h100,tpu-v5e,...]
        [--json FILE]

Nothing is compiled or run. Each stage is traced on shapes and lowered by JAX for the platform of the device, which
fails where an operation does not exist there. Its work is counted as in `benchmarks.roofline`. One restart is counted,
without the second search and with the guided vote.

The limit of a stage is the larger of two times: its operations at the peaks that the maker states, and its bytes at the
stated bandwidth. The prediction assumes that products and bytes reach half of these, and that decompositions reach one
percent of the peak in float32, because small ones keep few units busy. The waiting time of short steps that follow one
another, as in the assignment search, is in neither.
"""

import collections
import re
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp

from benchmarks.common import (
    add_json_option,
    add_preset_option,
    make_parser,
    print_environment,
    print_table,
    read_names,
    write_json,
)
from benchmarks.roofline import limit_seconds
from benchmarks.work import Work, count_work
from mv2v_jax import Config
from mv2v_jax.alignment.fit import fit
from mv2v_jax.alignment.run import SEARCHING
from mv2v_jax.alignment.stage_by_stage import StageByStage
from mv2v_jax.data.padding import padded_shapes

T = TypeVar("T")

_SHARE = 0.5
_DECOMPOSITION_SHARE = 0.01


class Device(NamedTuple):
    """A device as its maker describes it: JAX's name of its platform, and dense operations and bytes per second.

    Products of float32 are multiplied on a TPU as six products of bfloat16.
    """

    title: str
    platform: str
    flop: float
    half_flop: float
    bytes: float

    @property
    def peaks(self) -> dict[str, float]:
        """The peaks by the names of `roofline.measure_peaks`."""
        return {"flop_per_second": self.flop, "half_flop_per_second": self.half_flop, "bytes_per_second": self.bytes}


DEVICES = {
    "a100": Device("NVIDIA A100 80 GB SXM", "cuda", 19.5e12, 312e12, 2.04e12),
    "h100": Device("NVIDIA H100 SXM", "cuda", 67e12, 989e12, 3.35e12),
    "tpu-v5e": Device("TPU v5e", "tpu", 197e12 / 6, 197e12, 0.82e12),
    "tpu-v6e": Device("TPU v6e", "tpu", 918e12 / 6, 918e12, 1.64e12),
}


class CountedStages(StageByStage):
    """A `Run` that is traced on shapes: counts the work of every stage, and lowers it for each of ``platforms``.

    Attributes:
        work: `Work` by the name of the stage.
        calls: per platform, how often each custom call occurs in the lowered stages, by its target.
    """

    def __init__(self, platforms: set[str]) -> None:
        super().__init__(lambda *_: None)
        self.work: dict[str, Work] = {}
        self.calls = {platform: collections.Counter[str]() for platform in sorted(platforms)}
        self._is_searching = False

    def execute(self, name: str, fun: Callable[..., Any], *args: Any) -> Any:
        shapes = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) if hasattr(leaf, "shape") else leaf, args
        )
        self.work[name] = count_work(fun, *shapes)
        traced = jax.jit(fun).trace(*shapes)
        for platform, calls in self.calls.items():
            text = traced.lower(lowering_platforms=(platform,)).as_text()
            calls.update(re.findall(r"custom_call @(\S+?)\(", text))
        return jax.jit(fun)(*args)

    def scan(self, name: str, fun: Callable[..., Any], carry: Any, num_steps: int, *args: Any) -> Any:
        return self.execute(name, fun, carry, jnp.arange(num_steps), *args)

    def each(self, name: str, fun: Callable[..., Any], items: jax.Array, *shared: Any) -> Any:
        self._is_searching = name == SEARCHING
        (item,) = items
        return jax.tree.map(lambda leaf: leaf[None], fun(self, item, *shared))

    def when(self, needed: jax.Array, fun: Callable[..., T], otherwise: T, *args: Any) -> T:
        return otherwise if self._is_searching else fun(self, otherwise, *args)


def count_stages(rows: int, dimensions: int, config: Config, platforms: set[str]) -> CountedStages:
    """The stages of one restart on ``rows`` rows per space."""
    run = CountedStages(platforms)
    padded = padded_shapes(jax.ShapeDtypeStruct((rows, dimensions), jnp.float32), config.max_rows)
    keys = jax.eval_shape(lambda: jax.random.key(0)[None])
    jax.eval_shape(lambda keys, x, y: fit(run, keys, x, y, config)[0], keys, padded, padded)
    return run


def predict_seconds(work: Work, device: Device) -> float:
    """Seconds under the assumptions above."""
    products = work.matmul_flop / device.flop + work.half_flop / device.half_flop
    decompositions = work.decomposition_flop / device.flop / _DECOMPOSITION_SHARE
    return max(products, work.bytes / device.bytes) / _SHARE + decompositions


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Count every stage and print a table per preset; returns the figures."""
    parser = make_parser(__doc__)
    parser.add_argument("--rows", type=int, default=60_000, help="rows per space (default: 60,000)")
    parser.add_argument("--dimensions", type=int, default=768, help="dimensions of both spaces (default: 768)")
    add_preset_option(parser, ["fast", "default"])
    parser.add_argument(
        "--devices", type=read_names("devices", DEVICES), default=list(DEVICES), metavar="NAME,...", help="devices"
    )
    add_json_option(parser)
    options = parser.parse_args(arguments)
    record: dict[str, Any] = {"environment": print_environment(), "rows": options.rows}
    record |= {"dimensions": options.dimensions, "presets": {}}
    devices = {name: DEVICES[name] for name in options.devices}
    for preset in options.presets:
        platforms = {device.platform for device in devices.values()}
        counted = count_stages(options.rows, options.dimensions, Config.preset(preset), platforms)
        stages = {
            stage: {
                **vars(work),
                **{
                    name: {"limit": limit_seconds(work, device.peaks), "predicted": predict_seconds(work, device)}
                    for name, device in devices.items()
                },
            }
            for stage, work in counted.work.items()
        }
        whole = {
            name: {kind: sum(stage[name][kind] for stage in stages.values()) for kind in ("limit", "predicted")}
            for name in devices
        }
        rows = [
            [
                stage,
                *(f"{found[kind] / 1e9:.1f}" for kind in ("matmul_flop", "half_flop", "decomposition_flop")),
                f"{found['bytes'] / 1e9:.2f}",
                *(f"{1e3 * found[name]['limit']:.1f}, {1e3 * found[name]['predicted']:.1f}" for name in devices),
            ]
            for stage, found in stages.items()
        ]
        rows.append(
            ["all", *[""] * 4, *(f"{1e3 * w['limit']:.0f}, {1e3 * w['predicted']:.0f}" for w in whole.values())]
        )
        columns = ["stage", "f32 GFLOP", "bf16 GFLOP", "decomp. GFLOP", "GB", *(f"{name} ms" for name in devices)]
        title = f"{preset}, {options.rows:,} rows of {options.dimensions} dimensions per space: limit, prediction"
        print_table(title, columns, rows)
        for platform, calls in counted.calls.items():
            print(f"{preset}, lowered for {platform}: custom calls {dict(calls) or 'none'}")
        record["presets"][preset] = {"stages": stages, "whole": whole, "calls": counted.calls}
    write_json(options.json, record)
    return record


if __name__ == "__main__":
    main()
