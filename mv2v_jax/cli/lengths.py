"""Lengths of rows for people: which metrics the rows of a space suit, and what a map loses of them."""

from typing import Any

from mv2v_jax.cli.output import print_text
from mv2v_jax.profiles.lengths import describe_lengths, is_one_length, length_range
from mv2v_jax.profiles.profile import COMPARED_ROWS, SpaceProfile, sample_rows, unit_rows
from mv2v_jax.similarity import Metric


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


def _range(low: float, high: float) -> str:
    return describe_lengths(low, high).removeprefix("of ")


def _percentage(profile: SpaceProfile) -> str:
    assert profile.length_fit is not None
    return f"{max(0.0, float(profile.length_fit[1])):.0%}"
