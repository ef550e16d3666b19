"""What do more devices buy? Fits over meshes of CPU devices, and a prediction for 8, 64 and 256 devices.

    python -m benchmarks.scaling [--data FOLDER] [--rows N --eval N] [--preset fast] [--devices 1,2,4,8] [--json FILE]

CPU devices share the cores of one machine, so their times show what a mesh costs, not what it saves. The saving is
predicted from three counts per stage: the bytes that each step sends, from the compiled program; the work of each
device, from the jaxpr; and the time of the stage on one device, which is scaled by the work that is left on each of
several. The speed of the link between devices is an assumption (--bandwidth, --latency).
"""

import argparse
import json
import math
import os
import re
import subprocess
import sys
from typing import Any

import jax
from jax.sharding import AbstractMesh

from benchmarks.common import (
    add_data_options,
    evaluate,
    load_split,
    make_parser,
    print_environment,
    print_table,
    read_counts,
    seconds_of,
    write_json,
)
from benchmarks.roofline import limit_seconds, measure_peaks
from benchmarks.stages import Stage, run_stages
from benchmarks.work import count_work
from mv2v_jax import Config, align_restarts, make_mesh
from mv2v_jax.alignment.api import fit_restarts, prepare_restarts
from mv2v_jax.config import PRESETS
from mv2v_jax.ops.sharding import EVERYWHERE, RESTART, ROW, over_mesh

_PREDICTED = (8, 64, 256)
_STRONG_RESTARTS = 8
# The stages of a search; the others settle its result.
_SEARCH = ("anchors", "first estimate", "refine_matching", "refine_clusters", "refine_annealed", "evidence")
_FITS = ("strong, restarts", "weak, restarts", "strong, rows", "weak, rows")
_BITS = {"pred": 8, "s8": 8, "u8": 8, "bf16": 16, "f16": 16, "s32": 32, "u32": 32, "f32": 32, "s64": 64, "f64": 64}
_COLLECTIVE = re.compile(r"= (.*?) (all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)(?:-start)?\(")
_SHAPE = re.compile(r"(\w+)\[([\d,]*)\]")


def count_sent(text: str | None, num_devices: int) -> tuple[float, int]:
    """Bytes that each device sends around a ring in a compiled program, and the number of its collectives."""
    sent, number = 0.0, 0
    for shapes, kind in _COLLECTIVE.findall(text or ""):
        size = sum(
            _BITS[dtype] // 8 * math.prod(int(extent) for extent in extents.split(",") if extent)
            for dtype, extents in _SHAPE.findall(shapes)
        )
        sent += (2 if kind == "all-reduce" else 1) * (num_devices - 1) / num_devices * size
        number += 1
    return sent, number


def one_step(stage: Stage) -> tuple[int, tuple[Any, ...]]:
    """How often a stage repeats what it sends to other devices, and arguments with which it does so once."""
    if stage.num_steps is None:
        return 1, stage.args
    carry, steps, *rest = stage.args
    # Steps without a carry do not depend on each other: the devices share them.
    return (1, stage.args) if carry is None else (stage.num_steps, (carry, steps[-1:], *rest))


def time_fits(options: argparse.Namespace, num_devices: int) -> dict[str, Any]:
    """Fits over the devices of this process: several restarts over the restart axis, one restart over the row axis.

    Strong scaling: the same work on more devices. Weak scaling: the same work on each device; over the row axis, only
    the largest number of devices has all rows.
    """
    split, _ = load_split(options)
    config, key = Config.preset(options.preset), jax.random.key(0)
    share = num_devices / max(options.devices)
    record: dict[str, Any] = {}
    for name, restarts, rows, part in (
        ("strong, restarts", _STRONG_RESTARTS, 1, 1.0),
        ("weak, restarts", num_devices, 1, 1.0),
        ("strong, rows", 1, num_devices, 1.0),
        ("weak, rows", 1, num_devices, share),
    ):
        mesh = make_mesh(restarts, row_devices=rows)
        fit = (key, *(side[: int(part * len(side))] for side in (split.x, split.y)), restarts, config)
        seconds_of(lambda *fit, mesh=mesh: align_restarts(*fit, mesh=mesh), *fit)
        result, seconds = seconds_of(lambda *fit, mesh=mesh: align_restarts(*fit, mesh=mesh), *fit)
        record[name] = {"seconds": seconds, "top1": evaluate(result.best.map, split)["top1"]}
    if num_devices == 1:
        stages, _ = run_stages(key, split, config, repeats=3)
        record["stages"] = {name: stage.seconds for name, stage in stages.items()}
        record["peaks"] = measure_peaks(3)
    return record


def count_stages(options: argparse.Namespace, peaks: dict[str, float]) -> dict[str, Any]:
    """Per stage and number of devices: bytes and collectives of a step, and the shortest time of the whole stage."""
    split, _ = load_split(options)
    config, key = Config.preset(options.preset), jax.random.key(0)
    record: dict[str, Any] = {}
    for name, stage in run_stages(key, split, config, repeats=1)[0].items():
        # Rows come to the first stage in shares; all later stages hold all rows on every device.
        if name == "preprocess":
            continue
        times, args = one_step(stage)
        specs = [EVERYWHERE] * len(args)
        counted = {}
        for num_devices in (1, *_PREDICTED):
            abstract = AbstractMesh((1, num_devices), (RESTART, ROW))
            work = count_work(over_mesh(stage.fun, abstract, *specs), *stage.args)  # type: ignore[arg-type]
            sent, collectives = 0.0, 0
            if num_devices > 1:
                mesh = make_mesh(1, row_devices=num_devices, devices=jax.devices()[:num_devices])
                compiled = jax.jit(over_mesh(stage.fun, mesh, *specs)).lower(*args).compile()
                sent, collectives = count_sent(compiled.as_text(), num_devices)
            counted[str(num_devices)] = {"limit": limit_seconds(work, peaks), "bytes": sent, "collectives": collectives}
        record[name] = {"times": times, "devices": counted}
    number = _PREDICTED[0]
    mesh = make_mesh(number, row_devices=1, devices=jax.devices()[:number])
    x, y, choices = prepare_restarts(key, split.x, split.y, config, num_restarts=number, mesh=mesh)
    text = fit_restarts.lower(key, x, y, config, **choices).compile().as_text()
    sent, collectives = count_sent(text, number)
    record["restart"] = {"bytes": sent / (number - 1), "collectives": collectives}
    return record


def predict(
    stages: dict[str, Any], seconds: dict[str, float], num_devices: int, bandwidth: float, latency: float
) -> dict[str, float]:
    """Seconds of every stage on several devices: computing at the speed of one device, plus sending over the link."""
    predicted = {}
    for name, stage in stages.items():
        one, many = stage["devices"]["1"], stage["devices"][str(num_devices)]
        computing = seconds[name] * many["limit"] / one["limit"]
        sending = many["bytes"] / bandwidth + many["collectives"] * latency
        predicted[name] = computing + stage["times"] * sending
    return predicted


def _child(task: str, num_devices: int, arguments: list[str]) -> dict[str, Any]:
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(num_devices)}
    command = [sys.executable, "-m", "benchmarks.scaling", *arguments, "--child", task]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise SystemExit(f"{task} on {num_devices} devices ended with {done.returncode}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def show(fits: dict[int, Any], stages: dict[str, Any], bandwidth: float, latency: float) -> dict[str, Any]:
    """Print the measured times, the bytes sent and the predictions; returns the predictions."""
    rows = [
        [str(devices), *(f"{found[name]['seconds']:.3g} ({found[name]['top1']:.3f})" for name in _FITS)]
        for devices, found in fits.items()
    ]
    print_table(
        f"Measured seconds (top-1). Strong: {_STRONG_RESTARTS} restarts, or one restart on all rows. Weak: one restart "
        "per device, or one restart on rows in proportion to the devices",
        ["CPU devices", *_FITS],
        rows,
    )
    restart = stages.pop("restart")
    seconds = fits[min(fits)]["stages"]
    rows = [
        [name, str(stage["times"]), f"{seconds[name] * 1e3:.1f}"]
        + [
            f"{stage['devices'][str(number)]['bytes'] / 1e6:.2f} ({stage['devices'][str(number)]['collectives']})"
            for number in _PREDICTED
        ]
        for name, stage in stages.items()
    ]
    columns = ["stage", "steps", "ms on one device"]
    columns += [f"MB sent per step on {number} (collectives)" for number in _PREDICTED]
    print_table("The row axis", columns, rows)
    record = {}
    rows = []
    for number in (1, *_PREDICTED):
        predicted = predict(stages, seconds, number, bandwidth, latency)
        total = sum(predicted.values())
        searches = sum(value for name, value in predicted.items() if name in _SEARCH)
        record[str(number)] = {"fit": total, "search": searches, **predicted}
        base = record["1"]
        settled = base["fit"] - base["search"]
        restarts = math.ceil(256 / number) * base["search"] + settled + 256 * restart["bytes"] / bandwidth
        record[str(number)]["restarts"] = restarts
        times = [f"{searches:.2f}", f"{total:.2f}", f"{base['fit'] / total:.1f}"]
        rows.append([str(number), *times, f"{restarts:.1f}", f"{base['restarts'] / restarts:.1f}"])
    columns = ["devices", "search over the row axis, s", "fit over the row axis, s", "speedup"]
    columns += ["256 restarts over the restart axis, s", "speedup"]
    print_table(
        f"Predicted for devices as fast as this one and links of {bandwidth / 1e9:g} GB/s and {latency * 1e6:g} us",
        columns,
        rows,
    )
    print(f"A restart sends {restart['bytes'] / 1e3:.0f} kB, once, at its end.")
    return record


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Time, count, predict and print the tables; returns the figures."""
    given = sys.argv[1:] if arguments is None else arguments
    parser = make_parser(__doc__)
    add_data_options(parser)
    parser.add_argument("--preset", choices=PRESETS, default="fast", help="preset to fit (default: fast)")
    parser.add_argument(
        "--devices", type=read_counts, default=[1, 2, 4, 8], metavar="N,...", help="numbers of CPU devices to measure"
    )
    parser.add_argument(
        "--bandwidth", type=float, default=25e9, help="of the link between devices, bytes per second (default: 25e9)"
    )
    parser.add_argument("--latency", type=float, default=20e-6, help="of a collective, seconds (default: 20e-6)")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args(given)
    if options.child is not None:
        task, _, peaks = options.child.partition(" ")
        found = time_fits(options, jax.device_count()) if task == "fits" else count_stages(options, json.loads(peaks))
        print(json.dumps(found))
        return found
    environment = print_environment()
    devices = sorted({1, *options.devices})
    fits = {}
    for number in devices:
        fits[number] = _child("fits", number, given)
        times = ", ".join(f"{name} {fits[number][name]['seconds']:.1f} s" for name in _FITS)
        print(f"{number} devices: {times}", flush=True)
    stages = _child(f"count {json.dumps(fits[1]['peaks'])}", max(_PREDICTED), given)
    predicted = show(fits, dict(stages), options.bandwidth, options.latency)
    record = {"environment": environment, "fits": fits, "stages": stages, "predicted": predicted}
    write_json(options.json, record)
    return record


if __name__ == "__main__":
    main()
