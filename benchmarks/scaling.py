"""What more devices buy: fits over meshes of CPU devices, and what a step computes and moves on 8, 64 and 256.

python -m benchmarks.scaling [--data DIR] [--rows N --eval N] [--preset fast] [--devices 1,2,4,8] [--json FILE]

CPU devices share the cores of one machine, so that times show what spreading costs, not what it saves. What it would
save is predicted: the bytes that each step moves are counted in the compiled program, what each device computes in its
jaxpr, and the time of one device is scaled by how much less that is. The link is an assumption, see --bandwidth.
"""

import argparse
import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh

from benchmarks.common import (
    add_data_options,
    evaluate,
    load_split,
    print_environment,
    print_table,
    read_counts,
    seconds_of,
    steady_seconds,
    write_json,
)
from benchmarks.roofline import limit_seconds, measure_peaks
from benchmarks.work import count_work
from mv2v_jax import PRESETS, Config, align_restarts
from mv2v_jax.alignment.anchors import match_anchor_sets
from mv2v_jax.alignment.fit import SearchRows, again_steps, lift_search, prepare_search
from mv2v_jax.alignment.refine_annealed import annealing_length, refine_annealed, refine_csls, refine_whole
from mv2v_jax.alignment.restarts import restart_keys, search_restarts
from mv2v_jax.alignment.score import gather_evidence
from mv2v_jax.alignment.space import Space, fit_space
from mv2v_jax.data.padding import padded_size
from mv2v_jax.ops.sharding import EVERYWHERE, RESTART, ROW, make_mesh, over_mesh

_PREDICTED = (8, 64, 256)
_STRONG_RESTARTS = 8
_BITS = {"pred": 8, "s8": 8, "u8": 8, "bf16": 16, "f16": 16, "s32": 32, "u32": 32, "f32": 32, "s64": 64, "f64": 64}
_COLLECTIVE = re.compile(r"= (.*?) (all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)(?:-start)?\(")
_SHAPE = re.compile(r"(\w+)\[([\d,]*)\]")


class Stage(NamedTuple):
    """One step of a stage: how many a fit takes, and the step as a function of arrays."""

    times: int
    run: Callable[..., Any]
    arguments: tuple[Any, ...]


def count_moved(text: str | None, parts: int) -> tuple[float, int]:
    """Bytes that a device sends in a compiled program, around a ring of ``parts``, and in how many collectives."""
    moved, number = 0.0, 0
    for shapes, kind in _COLLECTIVE.findall(text or ""):
        size = sum(
            _BITS[dtype] // 8 * math.prod(int(extent) for extent in extents.split(",") if extent)
            for dtype, extents in _SHAPE.findall(shapes)
        )
        moved += (2 if kind == "all-reduce" else 1) * (parts - 1) / parts * size
        number += 1
    return moved, number


def stages_of(space_x: Space, space_y: Space, rows: SearchRows, config: Config) -> dict[str, Stage]:
    """The steps that take the time, on the rows they are taken on."""
    key = jax.random.key(0)
    x, y = rows.x.fitted, rows.y.fitted
    searched = jnp.eye(x.shape[1], y.shape[1])
    lifted = lift_search(searched, rows)
    smaller = min(space_x.rows.shape[0], space_y.rows.shape[0])
    step = jnp.ones(1, jnp.int32)

    def anneal(x, y, matrix):
        return refine_annealed(key, x, y, matrix, config=config, steps=step)

    def settle(x, y, matrix):
        return refine_csls(key, x, y, matrix, config=config, steps=step)

    def settle_whole(x, y, matrix):
        return refine_whole(key, x, y, matrix, config=config, steps=step)

    return {
        "anchor sets": Stage(1, lambda x, y: match_anchor_sets(key, x, y, config=config), (x, y)),
        "annealing step": Stage(
            annealing_length(min(x.shape[0], y.shape[0]), config) + again_steps(config, smaller),
            anneal,
            (x, y, searched),
        ),
        "evidence": Stage(1, lambda x, y, W: gather_evidence(key, x, y, W, jnp.ones(2)), (rows.x, rows.y, searched)),
        "settling step, samples": Stage(config.csls_steps, settle, (space_x.rows, space_y.rows, lifted)),
        "settling step, all rows": Stage(config.whole_steps, settle_whole, (space_x.rows, space_y.rows, lifted)),
    }


def _prepared(options: argparse.Namespace) -> tuple[Any, Config, tuple[Space, Space, SearchRows]]:
    split, _ = load_split(options)
    config = PRESETS[options.preset]()

    def prepare(x, y):
        spaces = fit_space(x), fit_space(y)
        return *spaces, prepare_search(*spaces, config=config)

    return split, config, jax.jit(prepare)(*_padded(split))


def _padded(split: Any) -> list[np.ndarray]:
    return [np.pad(rows, ((0, padded_size(len(rows)) - len(rows)), (0, 0))) for rows in (split.x, split.y)]


def time_fits(options: argparse.Namespace, num_devices: int) -> dict[str, Any]:
    """Fits over this process's devices: as many restarts over the restart axis, one over the row axis.

    Strong: the same work on more devices. Weak: as much work on each; of rows, the largest number of devices has all.
    """
    split, config, prepared = _prepared(options)
    key, record = jax.random.key(0), {}
    share = num_devices / max(options.devices)
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
        record["steps"] = {
            name: steady_seconds(jax.jit(stage.run), *stage.arguments)[1]
            for name, stage in stages_of(*prepared, config).items()
        }
        record["peaks"] = measure_peaks(3)
    return record


def count_steps(options: argparse.Namespace, peaks: dict[str, float]) -> dict[str, Any]:
    """Of each stage: how often it runs, and for each number of devices what a step moves, and the least it can take."""
    _, config, prepared = _prepared(options)
    record: dict[str, Any] = {}
    for name, stage in stages_of(*prepared, config).items():
        specs = [EVERYWHERE] * len(stage.arguments)
        counted = {}
        for parts in (1, *_PREDICTED):
            abstract = AbstractMesh((1, parts), (RESTART, ROW))
            work = count_work(over_mesh(stage.run, abstract, *specs), *stage.arguments)  # type: ignore[arg-type]
            moved, collectives = 0.0, 0
            if parts > 1:
                mesh = make_mesh(1, row_devices=parts, devices=jax.devices()[:parts])
                compiled = jax.jit(over_mesh(stage.run, mesh, *specs)).lower(*stage.arguments).compile()
                moved, collectives = count_moved(compiled.as_text(), parts)
            counted[str(parts)] = {"limit": limit_seconds(work, peaks), "bytes": moved, "collectives": collectives}
        record[name] = {"times": stage.times, "devices": counted}
    _, _, rows = prepared

    def search(keys, rows):
        return search_restarts(keys, rows, config=config)

    mesh = make_mesh(_PREDICTED[0], row_devices=1, devices=jax.devices()[: _PREDICTED[0]])
    keys = restart_keys(jax.random.key(0), 0, _PREDICTED[0])
    text = jax.jit(over_mesh(search, mesh, EVERYWHERE, EVERYWHERE)).lower(keys, rows).compile().as_text()
    moved, collectives = count_moved(text, _PREDICTED[0])
    record["restart"] = {"bytes": moved / (_PREDICTED[0] - 1), "collectives": collectives}
    return record


def predict(
    stages: dict[str, Any], seconds: dict[str, float], parts: int, bandwidth: float, latency: float
) -> dict[str, float]:
    """Seconds of every stage on ``parts`` devices: computing as one device does it, and moving over the link."""
    predicted = {}
    for name, stage in stages.items():
        one, many = stage["devices"]["1"], stage["devices"][str(parts)]
        computing = seconds[name] * many["limit"] / one["limit"]
        predicted[name] = stage["times"] * (computing + many["bytes"] / bandwidth + many["collectives"] * latency)
    return predicted


def _child(task: str, num_devices: int, arguments: list[str]) -> dict[str, Any]:
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(num_devices)}
    command = [sys.executable, "-m", "benchmarks.scaling", *arguments, "--child", task]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise SystemExit(f"{task} on {num_devices} devices ended with {done.returncode}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def show(fits: dict[int, Any], stages: dict[str, Any], bandwidth: float, latency: float) -> dict[str, Any]:
    """Print the times measured, what is moved, and what is predicted; returns the predictions."""
    rows = [
        [
            str(devices),
            *(f"{fits[devices][name][part]:.3g}" for name in fits[devices] if name in _FITS for part in _PARTS),
        ]
        for devices in fits
    ]
    columns = ["CPU devices", *(f"{name}, {part}" for name in _FITS for part in _PARTS)]
    print_table(
        f"Measured: {_STRONG_RESTARTS} restarts, a restart a device, one restart, one on rows as many as devices",
        columns,
        rows,
    )
    restart = stages.pop("restart")
    seconds = fits[min(fits)]["steps"]
    rows = [
        [name, str(stage["times"]), f"{seconds[name] * 1e3:.1f}"]
        + [
            f"{stage['devices'][str(parts)]['bytes'] / 1e6:.2f} ({stage['devices'][str(parts)]['collectives']})"
            for parts in _PREDICTED
        ]
        for name, stage in stages.items()
    ]
    columns = ["", "times", "ms on one device", *(f"MB sent a step on {parts} (collectives)" for parts in _PREDICTED)]
    print_table("The row axis", columns, rows)
    record = {}
    rows = []
    for parts in (1, *_PREDICTED):
        predicted = predict(stages, seconds, parts, bandwidth, latency)
        total = sum(predicted.values())
        searches = sum(predicted[name] for name in ("anchor sets", "annealing step", "evidence"))
        record[str(parts)] = {"fit": total, "search": searches, **predicted}
        base = record["1"]
        settled = base["fit"] - base["search"]
        restarts = math.ceil(256 / parts) * base["search"] + settled + 256 * restart["bytes"] / bandwidth
        record[str(parts)]["restarts"] = restarts
        times = [f"{searches:.2f}", f"{total:.2f}", f"{base['fit'] / total:.1f}"]
        rows.append([str(parts), *times, f"{restarts:.1f}", f"{base['restarts'] / restarts:.1f}"])
    columns = ["devices", "a search, s", "a fit over the row axis, s", "times faster"]
    columns += ["256 restarts over the restart axis, s", "times faster"]
    print_table(
        f"Predicted: devices as fast as this one, links of {bandwidth / 1e9:g} GB/s and {latency * 1e6:g} us",
        columns,
        rows,
    )
    print(f"A restart sends {restart['bytes'] / 1e3:.0f} kB, once, when it is done.")
    return record


_FITS = ("strong, restarts", "weak, restarts", "strong, rows", "weak, rows")
_PARTS = ("seconds", "top1")


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Read the arguments, time, count, predict, print the tables; returns the record."""
    given = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_data_options(parser)
    parser.add_argument("--preset", choices=sorted(PRESETS), default="fast")
    parser.add_argument("--devices", type=read_counts, default=[1, 2, 4, 8], metavar="N,...", help="to measure")
    parser.add_argument("--bandwidth", type=float, default=25e9, help="of the link between devices, bytes a second")
    parser.add_argument("--latency", type=float, default=20e-6, help="of a collective, seconds")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args(given)
    if options.child is not None:
        task, _, peaks = options.child.partition(" ")
        found = time_fits(options, jax.device_count()) if task == "fits" else count_steps(options, json.loads(peaks))
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
