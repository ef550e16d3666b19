"""Lengths of rows for people: which metrics the rows of a space suit, and what a map loses of them."""

from typing import Any

import click

from mv2v_jax.cli.options import count, option
from mv2v_jax.cli.output import print_text
from mv2v_jax.profiles.lengths import describe_lengths, is_one_length, length_range
from mv2v_jax.profiles.profile import COMPARED_ROWS, SpaceProfile, sample_rows, unit_rows
from mv2v_jax.similarity import Metric

metric_option = option(
    "--metric",
    type=click.Choice(["cosine", "dot", "l2"]),
    default="cosine",
    show_default=True,
    help="How the mapped rows are compared. dot and l2 give them the one length that raw vectors of the target encoder "
    "have. If these have several, lengths are predicted.",
)

dims_option = count(
    "--dims",
    type=click.IntRange(1, 2**20),
    help="Keep the first N numbers of each mapped row, for an index that holds prefixes of a Matryoshka encoder. They "
    "are scaled to the one length of the target encoder's vectors, if there is one.",
)


def describe_metrics(profile: SpaceProfile) -> str:
    """Which metrics rows that are mapped into a space suit."""
    lengths = profile.lengths
    if is_one_length(lengths):
        return f"cosine, and dot and l2 with --metric; its rows have one length, {lengths[1]:.3g}"
    described = f"lengths {describe_lengths(lengths[0], lengths[2])}"
    if profile.length_fit is None:
        return f"cosine; its rows have {described}"
    return f"cosine; its rows have {described}, of which --metric dot and l2 predict {_percentage(profile)}"


def warn_of_lengths(profile: SpaceProfile | None, metric: Metric, rows: Any, name: str) -> None:
    """Warn where a metric compares lengths, which have to be predicted.

    Args:
        profile: of the space that the rows are mapped into.
        metric: how they will be compared.
        rows: raw rows before they are mapped; at most 2,048 of them are read.
        name: what the message calls them.
    """
    if metric == "cosine" or profile is None or profile.length_fit is None:
        return
    sampled = sample_rows(rows, COMPARED_ROWS)
    if not len(sampled):
        return
    low, _, high = length_range(unit_rows(sampled)[1])
    print_text(
        f"Warning: {metric} compares lengths, and a map keeps none: the lengths of {name} ({_range(low, high)}) are "
        f"dropped, and those of the rows mapped to ({_range(profile.lengths[0], profile.lengths[2])}) are predicted, "
        f"which explains {_percentage(profile)} of their variance; stored rows lose recall by that, queries do not.",
        to_stderr=True,
    )


def warn_of_other_metric(
    profile: SpaceProfile | None, metric: Metric, compares_by: Metric, rows: Any, name: str
) -> None:
    """Warn where a collection compares lengths, and the rows for it are written without them.

    Args:
        profile: of the space that the rows are mapped into.
        metric: what the rows are written for.
        compares_by: how the collection compares them.
        rows: raw rows before they are mapped; at most 2,048 of them are read.
        name: what the message calls the collection.
    """
    if metric != "cosine" or compares_by == "cosine" or profile is None:
        return
    sampled = sample_rows(rows, COMPARED_ROWS)
    # Rows of one length are mapped to rows of one length, which compare alike in every way.
    if len(sampled) and is_one_length(profile.lengths) and is_one_length(length_range(unit_rows(sampled)[1])):
        return
    print_text(
        f"Warning: {name} compares by {compares_by}, and a map keeps no lengths; --metric {compares_by} restores them "
        "as far as it can.",
        to_stderr=True,
    )


def _range(low: float, high: float) -> str:
    return describe_lengths(low, high).removeprefix("of ")


def _percentage(profile: SpaceProfile) -> str:
    assert profile.length_fit is not None
    return f"{max(0.0, float(profile.length_fit[1])):.0%}"
