"""Does the method work on data unlike the one it was developed on, and does its verdict tell where it does not?

    python -m benchmarks.generality --data FOLDER [--only NAME,...] [--seeds 3] [--restarts 2] [--no-published]
        [--json FILE]

One line per data set of `benchmarks.corpora` and seed: the published method, the default preset with its verdict, and
the best orthogonal map from true pairs. Finished fits are written at once, and a second run with the same file goes on
with the others. A file of another version of the method must be removed first.
"""

import argparse
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks.common import (
    Split,
    add_folder_option,
    add_json_option,
    check_folder,
    evaluate,
    evaluate_oracle,
    make_parser,
    print_environment,
    print_table,
    write_json,
)
from benchmarks.corpora import Corpus, corpora
from mv2v_jax import Config, Reason, Verdict
from mv2v_jax.cli.options import DEFAULT_RESTARTS
from mv2v_jax.runs.compiled import align_with_progress

COLUMNS = ["data set", "rows", "seed", "published", "default", "oracle", "verdict", "confidence", "estimate"]
COLUMNS += ["published, s", "default, s", "compile, s", "second search"]

# The preset and the number of restarts of a method.
Method = tuple[str, int]
Fit = dict[str, Any]
PUBLISHED, ORACLE = "published", "oracle"


def read_prefixes(text: str) -> list[str]:
    """Beginnings of names of data sets from an option such as ``web,skew``."""
    prefixes = text.split(",")
    names = [corpus.name for corpus in corpora()]
    for prefix in prefixes:
        if not prefix or not any(name.startswith(prefix) for name in names):
            raise argparse.ArgumentTypeError(f"no data set begins with {prefix!r}; there are {', '.join(names)}")
    return prefixes


# ----------------------------------------------------------------------------------------------------------------- fits


@dataclasses.dataclass
class Fits:
    """Finished fits, kept in a file if there is one.

    Attributes:
        file: written after every fit.
        environment: versions and device.
        found: the fits so far.
    """

    file: Path | None
    environment: dict[str, Any]
    found: list[Fit] = dataclasses.field(default_factory=list)

    def read(self) -> None:
        """Take over the fits of an earlier run."""
        if self.file is not None and self.file.exists():
            self.found = json.loads(self.file.read_text(encoding="utf-8"))["fits"]

    def get(self, **key: Any) -> Fit | None:
        """The fit that has these values, if it is there."""
        return next((fit for fit in self.found if key.items() <= fit["key"].items()), None)

    def add(self, fit: Fit) -> None:
        """Keep a fit."""
        self.found.append(fit)
        if self.file is not None:
            # A run that is stopped here leaves the old file whole.
            part = self.file.with_name(f"{self.file.name}.part")
            write_json(part, {"environment": self.environment, "fits": self.found})
            part.replace(self.file)


def fit_once(split: Split, method: Method, seed: int) -> Fit:
    """Scores of a fit, what it says of itself, and its seconds, those of compiling apart."""
    preset, restarts = method
    key, config = jax.random.key(seed), Config.preset(preset)
    found = align_with_progress(key, split.x, split.y, config, lambda *_: None, restarts)
    result = found.result.best
    components = result.info.components
    return {
        "preset": preset,
        "scores": evaluate(result.map, split),
        "verdict": Verdict(int(result.verdict)).name,
        "reason": Reason(int(result.reason)).name,
        "confidence": float(result.confidence),
        "estimated_top1": float(result.estimated_top1),
        "agreement": float(result.agreement),
        "second_search": {"tried": bool(components.tried), "used": bool(components.used)},
        "evidence": {
            field.name: np.asarray(getattr(result.evidence, field.name)).tolist()
            for field in dataclasses.fields(result.evidence)
        },
        "seconds": found.seconds,
        "compile_seconds": found.compile_seconds,
    }


def fit_all(folder: Path, chosen: Sequence[Corpus], options: argparse.Namespace, fits: Fits) -> set[str]:
    """Fit every data set by every method with every seed; returns the names of those that are missing."""
    methods: dict[str, Method] = {"default": ("default", options.restarts)}
    if options.published:
        methods = {PUBLISHED: ("notebook", 1), **methods}
    missing = set()
    for corpus in chosen:
        wanted: list[dict[str, Any]] = [{"data": corpus.name, "method": ORACLE}]
        for seed in range(options.seeds):
            for name, (_, restarts) in methods.items():
                wanted.append({"data": corpus.name, "method": name, "seed": seed, "restarts": restarts})
        wanted = [key for key in wanted if fits.get(**key) is None]
        if not wanted:
            continue
        try:
            split = corpus.build(folder)
        except FileNotFoundError as error:
            missing.add(corpus.name)
            print(f"{corpus.name}: missing, {error}", flush=True)
            continue
        sizes = {"rows_x": len(split.x), "rows_y": len(split.y), "rows_eval": len(split.x_eval)}
        for key in wanted:
            if key["method"] == ORACLE:
                measured: Fit = {"scores": evaluate_oracle(split)}
            else:
                measured = fit_once(split, methods[key["method"]], key["seed"])
            fits.add({"key": key, **sizes, **measured})
            print(describe(fits.found[-1]), flush=True)
    return missing


# ---------------------------------------------------------------------------------------------------------------- table


def describe(fit: Fit) -> str:
    """One line about a fit."""
    key, said = fit["key"], f", {fit['verdict']}" if "verdict" in fit else ""
    seed = f", seed {key['seed']}" if "seed" in key else ""
    return f"{key['data']}, {key['method']}{seed}: top-1/FOSCTTM {show_scores(fit)}{said}"


def show_scores(fit: Fit | None) -> str:
    """Top-1 and FOSCTTM; empty for ``None``."""
    return "" if fit is None else f"{fit['scores']['top1']:.3f}/{fit['scores']['foscttm']:.4f}"


def table_rows(name: str, options: argparse.Namespace, fits: Fits) -> list[list[str]]:
    """The lines of one data set, one per seed."""
    oracle, rows = fits.get(data=name, method=ORACLE), []
    for seed in range(options.seeds):
        ours = fits.get(data=name, method="default", seed=seed, restarts=options.restarts)
        published = fits.get(data=name, method=PUBLISHED, seed=seed) if options.published else None
        if ours is None:
            continue
        rows.append(
            [
                name,
                f"{ours['rows_x']:,} > {ours['rows_y']:,}",
                str(seed),
                *(show_scores(fit) for fit in (published, ours, oracle)),
                ours["verdict"] + (f" ({ours['reason']})" if ours["reason"] else ""),
                f"{ours['confidence']:.2f}",
                f"{ours['estimated_top1']:.2f}",
                "" if published is None else f"{published['seconds']:.1f}",
                f"{ours['seconds']:.1f}",
                f"{ours['compile_seconds']:.1f}",
                {(False, False): "", (True, False): "not better", (True, True): "used"}[
                    tuple(ours["second_search"].values())
                ],
            ]
        )
    return rows


def main(arguments: list[str] | None = None) -> list[Fit]:
    """Fit and print the table; returns all fits."""
    parser = make_parser(__doc__)
    add_folder_option(parser)
    parser.add_argument(
        "--only", type=read_prefixes, metavar="NAME,...", help="data sets whose names begin so (default: all)"
    )
    parser.add_argument("--seeds", type=int, default=3, help="number of random seeds per data set (default: 3)")
    parser.add_argument(
        "--restarts",
        type=int,
        default=DEFAULT_RESTARTS,
        help=f"number of searches per fit of the default preset (default: {DEFAULT_RESTARTS})",
    )
    parser.add_argument(
        "--no-published", dest="published", action="store_false", help="leave out the published method, the slowest"
    )
    add_json_option(parser)
    options = parser.parse_args(arguments)
    folder = check_folder(options.data)
    if folder is None:
        raise SystemExit("these data sets are not bundled: name their folder with --data")
    if min(options.seeds, options.restarts) < 1:
        parser.error("--seeds and --restarts must be at least 1")
    prefixes = tuple(options.only or [""])
    chosen = [corpus for corpus in corpora() if corpus.name.startswith(prefixes)]
    fits = Fits(options.json, print_environment())
    fits.read()
    missing = fit_all(folder, chosen, options, fits)
    rows = []
    for corpus in chosen:
        if corpus.name in missing:
            rows.append([corpus.name, "missing", *[""] * (len(COLUMNS) - 2)])
        else:
            rows += table_rows(corpus.name, options, fits)
    title = f"top-1/FOSCTTM by data set and seed; the default preset with {options.restarts} restarts"
    print_table(title, COLUMNS, rows)
    return fits.found


if __name__ == "__main__":
    main()
