"""``mv2v info``: what a map is, why it was judged as it was, and where it came from."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from mv2v_jax.cli.help import Command
from mv2v_jax.cli.lengths import describe_metrics
from mv2v_jax.cli.options import json_option
from mv2v_jax.cli.output import print_facts, print_table, print_text
from mv2v_jax.cli.verdict_text import describe_verdict, list_reasons, read_facts
from mv2v_jax.data.map_file import load_map
from mv2v_jax.data.map_tensors import read_profiles

# Printed with the verdict, so not among the other facts.
_JUDGED = (
    *("verdict", "reason", "confidence", "estimated_top1", "score", "closeness", "local_structure", "symmetry"),
    *("local_closeness", "distinct", "restart_agreement", "restarts", "evidence", "held_out_rows"),
)
# The facts that most people look for, in this order; the others follow by name.
_FIRST = ("n", "m", "d_x", "d_y", "digest_x", "digest_y", "pairs", "digest_pairs", "preset", "seed", "settled")


@click.command(
    "info",
    cls=Command,
    arguments={"MAP": "Map that mv2v align or mv2v stability wrote."},
    examples=["mv2v info map.safetensors"],
)
@click.argument("map_file", metavar="MAP")
@json_option()
def info_command(map_file: str, as_json: bool) -> None:
    """Show a map's verdict, the reasons for it and its origin.

    All of it was written into the file by the command that fitted the map.
    """
    linear_map, metadata = load_map(map_file)
    profile = read_profiles(Path(map_file))[1]
    if as_json:
        print(json.dumps({"W": list(linear_map.W.shape), **dict(sorted(metadata.items()))}))
        return
    names = [*(name for name in _FIRST if name in metadata), *sorted(metadata.keys() - set(_FIRST))]
    facts = read_facts({name: metadata[name] for name in names})
    config = facts.pop("config", None)
    d_x, d_y = linear_map.W.shape
    fitted = f", fitted on {facts['n']:,} and {facts['m']:,} rows" if {"n", "m"} <= facts.keys() else ""
    print_text(f"{map_file} maps {d_x} dimensions to {d_y}{fitted}.")
    if profile is not None:
        print_text(f"The target frame suits {describe_metrics(profile)}.")
    print()
    _print_verdict(facts)
    print_text("Where it came from:")
    print_facts({name: value for name, value in facts.items() if name not in _JUDGED} | {"map": Path(map_file)})
    if isinstance(config, dict) and config:
        print()
        print_text("Settings:")
        print_facts(_list_settings(config))


def _print_verdict(facts: Mapping[str, Any]) -> None:
    if not {"verdict", "confidence", "estimated_top1"} <= facts.keys():
        print_text("Verdict: none in this file; mv2v align and mv2v stability write one with every map.")
        print()
        return
    print_text(f"Verdict: {describe_verdict(facts)}")
    print()
    print_text("Why it was judged so:")
    print_table(["fact", "value", "meaning"], [list(reason) for reason in list_reasons(facts)], notes=True)
    if "basins" in facts:
        print_text("The score of each restart is in the file restarts.csv of the study.")
    print()


def _list_settings(config: Mapping[str, Any]) -> dict[str, str]:
    """One line per stage."""
    stages: dict[str, list[str]] = {}
    for name, value in config.items():
        settings = value if isinstance(value, dict) else {name: value}
        stages.setdefault(name if isinstance(value, dict) else "whole fit", []).extend(
            f"{setting}={value}" for setting, value in settings.items()
        )
    return {stage: " ".join(settings) for stage, settings in stages.items()}
