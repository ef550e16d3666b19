"""Which pictures of a map tell a right one from a wrong one? Those of its own rows, and those of a report.

    python -m benchmarks.pictures [--data FOLDER] [--rows N --eval E] [--few 1000] [--seed 0] [--json FILE]

One right map and two wrong ones, each fitted with two restarts of ``fast``: on all rows, on too few of them, and on
rows of the target whose values were put into another order within every column, so that no geometry is left. Pictures
of a map's own rows are measured by one figure each:

- clouds: share of the 20 nearest points of both spaces, in the first two principal components of both together, that
  are of the other space; 0.5 if the clouds lie over each other.
- nearest cosine: mean cosine of a mapped row with the nearest row of the target.
- hubs: share of the rows of the target that are no mapped row's nearest ten.

A report shows the agreement of new searches with the map, on rows that no search has seen: share of the searches that
find the same neighbours of a row, and agreement of the maps in the finer directions.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.decomposition import PCA
from sklearn.neighbors import NearestNeighbors

from benchmarks.common import (
    Split,
    add_data_options,
    add_seed_option,
    evaluate,
    load_split,
    make_parser,
    print_environment,
    print_table,
    write_json,
)
from mv2v_jax import Config, LinearMap, Verdict, apply
from mv2v_jax.ops.knn import top_neighbors
from mv2v_jax.ops.masked import center_unit
from mv2v_jax.report.measure import measure
from mv2v_jax.report.searches import search_again
from mv2v_jax.runs.compiled import align_with_progress

NUM_POINTS, NUM_NEAREST, NUM_SEARCHES = 20, 10, 4


def quiet(*_: Any) -> None:
    """Report nothing."""


def without_geometry(split: Split, seed: int) -> Split:
    """The same fitting rows of the target with the values of every column in another order."""
    return dataclasses.replace(split, y=np.random.default_rng(seed).permuted(split.y, axis=0))


def look_at_own_rows(linear_map: LinearMap, split: Split) -> dict[str, float]:
    """What the usual pictures show: one figure for each of them."""
    mapped = apply(linear_map, jnp.asarray(split.x))
    target = center_unit(jnp.asarray(split.y), linear_map.target.mean)
    nearest = jax.tree.map(np.asarray, top_neighbors(mapped, target, num_neighbors=NUM_NEAREST))
    both = np.concatenate([mapped, target])
    points = PCA(2, random_state=0).fit_transform(both)
    near = NearestNeighbors(n_neighbors=NUM_POINTS + 1).fit(points).kneighbors(points, return_distance=False)[:, 1:]
    is_target = np.arange(len(both)) >= len(mapped)
    return {
        "clouds": float((is_target[near] != is_target[:, None]).mean()),
        "nearest_cosine": float(nearest.similarity[:, 0].mean()),
        "hubs": 1 - len(np.unique(nearest.index)) / len(target),
    }


def fit_and_look(split: Split, seed: int) -> dict[str, Any]:
    """Fit, and measure the pictures of the map's own rows and those of a report."""
    config = Config.preset("fast")
    best = align_with_progress(jax.random.key(seed), split.x, split.y, config, quiet, 2).result.best
    searches = search_again(split.x, split.y, config, seed, NUM_SEARCHES, quiet)
    measured = measure(best.map, split.x, split.y, config, searches)
    assert measured.agreement is not None
    return {
        "rows": len(split.x),
        "top1": evaluate(best.map, split)["top1"],
        "verdict": Verdict(int(best.verdict)).name,
        **look_at_own_rows(best.map, split),
        "row_agreement": float(measured.agreement.mean()),
        "chance_agreement": measured.chance,
        "map_agreement": measured.confirmed,
    }


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Fit three maps and print the table; returns the figures by map."""
    parser = make_parser(__doc__)
    add_data_options(parser)
    parser.add_argument("--few", type=int, default=1_000, help="rows per space that are too few (default: 1,000)")
    add_seed_option(parser)
    options = parser.parse_args(arguments)
    environment = print_environment()
    split, data = load_split(options)
    cases = {
        "right": split,
        "wrong: too few rows": dataclasses.replace(split, x=split.x[: options.few], y=split.y[: options.few]),
        "wrong: columns in another order": without_geometry(split, options.seed),
    }
    found = {}
    for name, case in cases.items():
        found[name] = fit_and_look(case, options.seed)
        print(f"{name}: {found[name]}", flush=True)
    rows = [
        [
            name,
            f"{case['rows']:,}",
            f"{case['top1']:.3f}",
            case["verdict"],
            *(f"{case[picture]:.2f}" for picture in ("clouds", "nearest_cosine", "hubs")),
            f"{case['row_agreement']:.4f}",
            f"{case['chance_agreement']:.4f}",
            f"{case['map_agreement']:.2f}",
        ]
        for name, case in found.items()
    ]
    columns = ["map", "rows", "top-1", "verdict", "clouds", "nearest cosine", "hubs"]
    agreement = ["agreement on rows", "by chance", "agreement of maps"]
    print_table("pictures of the map's own rows, and agreement on rows not seen", [*columns, *agreement], rows)
    write_json(options.json, {"environment": environment, "data": data, "maps": found})
    return found


if __name__ == "__main__":
    main()
