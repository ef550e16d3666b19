"""The parts that every config is made of: fields with bounds and help texts, how they are changed and checked."""

import dataclasses
import difflib
import math
from collections.abc import Iterator, Mapping
from typing import Any, Self, TypeVar

import jax
import numpy as np

from mv2v_jax.errors import InputError

T = TypeVar("T")

MAX_COUNT = 2**31 - 1


def count(default: int, help: str, *, low: int = 0, high: int = MAX_COUNT) -> Any:
    """A whole number from ``low`` to ``high``; static."""
    return dataclasses.field(default=default, metadata={"static": True, "help": help, "low": low, "high": high})


def switch(default: bool, help: str) -> Any:
    """True or false; static."""
    return dataclasses.field(default=default, metadata={"static": True, "help": help})


def number(default: float, help: str, *, low: float = 0.0, high: float = math.inf) -> Any:
    """A number from ``low`` to ``high``; traced."""
    return dataclasses.field(default=default, metadata={"help": help, "low": low, "high": high})


def part(cls: type, help: str) -> Any:
    """The settings of one stage, a config of its own."""
    return dataclasses.field(default_factory=cls, metadata={"help": help})


class Settings:
    """What all configs have in common."""

    def replace(self, **changes: Any) -> Self:
        """A copy with some fields changed; those of a stage as a dict.

        Example:
            >>> from mv2v_jax import Config
            >>> Config.fast().replace(max_rows=10_000, anchors={"num_clusters": 60}).anchors.num_clusters
            60
        """
        fields: dict[str, Any] = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}  # type: ignore[arg-type]
        for name, value in changes.items():
            if name not in fields:
                near = difflib.get_close_matches(name, fields, 1)
                hint = f"; did you mean {near[0]}?" if near else f"; its fields are {', '.join(fields)}"
                raise InputError(f"{type(self).__name__} has no field {name}{hint}")
            nested = isinstance(fields[name], Settings) and isinstance(value, Mapping)
            fields[name] = fields[name].replace(**value) if nested else value
        return type(self)(**fields)


def iterate_fields(config: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], dataclasses.Field, Any]]:
    """Path, field and value of every setting of a config, those of its stages included, in their order."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if isinstance(value, Settings):
            yield from iterate_fields(value, (*path, field.name))
        else:
            yield (*path, field.name), field, value


def check_settings(config: Any, cls: type) -> None:
    """Raise `InputError` unless ``config`` is of the class and every setting is within its bounds."""
    if not isinstance(config, cls):
        hint = f"; use {cls.__name__}.{config}()" if isinstance(config, str) and hasattr(cls, config) else ""
        article = "an" if cls.__name__[0] in "AEIOU" else "a"
        raise InputError(f"config must be {article} {cls.__name__}, found {config!r}{hint}")
    for path, field, value in iterate_fields(config):
        _check_field(".".join(path), field, value)


def _check_field(name: str, field: dataclasses.Field, value: Any) -> None:
    if field.type is bool:
        if not isinstance(value, bool):
            raise InputError(f"{name} must be true or false, found {value!r}")
        return
    low, high = field.metadata["low"], field.metadata["high"]
    if field.type is int:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            is_above = isinstance(value, int) and value > high
            bounds = f"from {low} to {high}" if is_above else f"of at least {low}"
            raise InputError(f"{name} must be a whole number {bounds}, found {value!r}")
    elif isinstance(value, jax.core.Tracer):
        # A traced float cannot be looked at; it is the caller's own sweep.
        if value.ndim:
            raise InputError(f"{name} must be one number, found shape {list(value.shape)}; use jax.vmap over configs")
    else:
        found = _plain_number(value)
        if not isinstance(found, float) or not (low <= found <= high and math.isfinite(found)):
            raise InputError(f"{name} must be a number from {low} to {high}, found {value!r}")


def _plain_number(value: Any) -> Any:
    """A scalar of NumPy or JAX, or a whole number, as a Python float; anything else as it is."""
    if isinstance(value, (jax.core.Tracer, bool, np.bool_)):
        return value
    if isinstance(value, (jax.Array, np.ndarray, np.generic)):
        is_number = value.ndim == 0 and np.issubdtype(value.dtype, np.number) and value.dtype.kind != "c"
        return float(value) if is_number else value
    try:
        return float(value) if isinstance(value, (int, float)) else value
    except OverflowError:
        return math.inf


def as_config(config: Any, cls: type[T]) -> T:
    """A config whose settings are within their bounds, the defaults for ``None``, with plain Python floats.

    A float of NumPy has another type than a Python float once traced, so that sweeping it would compile again.

    Raises:
        InputError: as `check_settings`.
    """
    config = cls() if config is None else config
    check_settings(config, cls)
    return _with_plain_floats(config)


def _with_plain_floats(config: Any) -> Any:
    changes = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if isinstance(value, Settings):
            changes[field.name] = _with_plain_floats(value)
        elif field.type is float:
            changes[field.name] = _plain_number(value)
    return type(config)(**{field.name: getattr(config, field.name) for field in dataclasses.fields(config)} | changes)
