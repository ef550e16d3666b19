"""The metadata of a map as facts. They come from a file that anybody may have written, so every type is checked."""

import json
import math
from collections.abc import Callable, Mapping
from typing import Any

# Deeper nesting stays text: no map has it, and printing it would exhaust the stack.
_MAX_DEPTH = 20
_MAX_COUNT = 2**63


def _is_number(value: Any) -> bool:
    return isinstance(value, float) or _is_count(value)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _MAX_COUNT


def _is_share(value: Any) -> bool:
    return _is_number(value) and math.isfinite(value)


def _is_list_of_numbers(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_number, value))


def _is_summary(value: Any) -> bool:
    return value is None or (isinstance(value, dict) and _is_number(value.get("median")))


def _is_optional_number(value: Any) -> bool:
    return value is None or _is_number(value)


# What the facts must be that the verdict is described from.
_TYPES: dict[str, Callable[[Any], bool]] = {
    **dict.fromkeys(("n", "m", "restarts", "index_size", "pairs"), _is_count),
    **dict.fromkeys(("verdict", "reason"), lambda value: isinstance(value, str)),
    **dict.fromkeys(("confidence", "estimated_top1"), _is_share),
    **dict.fromkeys(("score", "local_structure", "local_closeness", "symmetry", "distinct"), _is_number),
    "restart_agreement": _is_optional_number,
    "closeness": _is_list_of_numbers,
    "agreement": _is_summary,
    "basins": lambda value: isinstance(value, list),
}


def parse_facts(metadata: Mapping[str, str]) -> dict[str, Any]:
    """The metadata of a map, values that were not text parsed from JSON; facts of a wrong type are left out.

    Example:
        >>> parse_facts({"n": "600", "note": "[1,", "confidence": '"high"'})
        {'n': 600, 'note': '[1,'}
    """
    facts = {name: _parse(text) for name, text in metadata.items()}
    return {name: value for name, value in facts.items() if _TYPES.get(name, lambda _: True)(value)}


def _parse(text: str) -> Any:
    """A value of the metadata; text that is no JSON, or too deeply nested, stays text."""
    depth = deepest = 0
    for sign in text:
        depth += (sign in "[{") - (sign in "]}")
        deepest = max(deepest, depth)
    if deepest > _MAX_DEPTH:
        return text
    try:
        return json.loads(text)
    except ValueError:
        return text
