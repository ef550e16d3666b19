"""Options that several commands share, and one option per setting of `Config`."""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import click

from mv2v_jax.cli.help import Option
from mv2v_jax.config import PRESETS, Config, check_config
from mv2v_jax.settings import iterate_fields

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]

DEFAULT_RESTARTS = 2

option = functools.partial(click.option, cls=Option)
flag = functools.partial(option, is_flag=True)
count = functools.partial(option, metavar="N")


def output_option(help: str) -> Decorator:
    """The file or folder that a command writes."""
    return option("-o", "--output", type=click.Path(path_type=Path), required=True, help=help)


preset_option = option(
    "--preset",
    metavar="NAME",
    type=click.Choice(PRESETS),
    default="default",
    show_default=True,
    help="Preset of the algorithm's settings: default, fast (at most half the time), notebook or paper (the published "
    "values of mini-vec2vec).",
)

seed_option = count(
    "--seed",
    type=click.IntRange(0, 2**32 - 1),
    default=0,
    show_default=True,
    help="Seed of all random draws. The same seed on the same data gives the same result.",
)

restarts_option = count(
    "--restarts",
    type=click.IntRange(1, 10_000),
    default=DEFAULT_RESTARTS,
    show_default=True,
    help="Number of searches from different random draws. The search with the best score is kept; no known pair is "
    "needed for that.",
)

accept_option = flag(
    "--accept", help="Accept the map whatever its verdict: no warning is printed and the exit code is 0."
)

pairs_option = option(
    "--pairs",
    nargs=2,
    metavar="PX PY",
    help="Two files of known pairs, if you have any: row i of PX, in the space of X, and row i of PY, in the space of "
    "Y, belong together.",
)


def settled_option(default: int) -> Decorator:
    """How many of the best restarts are settled and averaged."""
    return count(
        "--settled",
        type=click.IntRange(1, 10_000),
        default=default,
        show_default=True,
        help="Number of the best restarts that are refined to the end and averaged, as far as they agree. More are "
        "better and slower. After a second search at least two are, by default.",
    )


def json_option(help: str = "Print one JSON line on standard output instead of text.") -> Decorator:
    """Output for programs."""
    return flag("--json", "as_json", help=help)


column_option = option(
    "--column",
    metavar="NAME",
    help="Column of the vectors in a table or a store, or array in a file of several. A pattern such as 'dim_*' takes "
    "columns with one number each. By default the only column of lists.",
)

id_column_option = option("--id-column", metavar="NAME", help="Column of the ids in a table or a store.")

text_column_option = option("--text-column", metavar="NAME", help="Column of the texts in a table or a store.")


class Devices(NamedTuple):
    """The options that say over which devices restarts and rows are distributed, as they were given."""

    all_devices: bool
    distributed: bool
    coordinator: str | None
    num_processes: int | None
    process: int | None
    row_devices: int | None


def _device_options() -> Iterator[Decorator]:
    device = functools.partial(option, section="Devices")
    device_count = functools.partial(count, section="Devices")
    unfound = "Needed with --distributed if the processes cannot find each other."
    yield device(
        "--all-devices",
        is_flag=True,
        help="Distribute the restarts, and the rows of each restart, over all devices of this machine.",
    )
    yield device(
        "--distributed",
        is_flag=True,
        help="Distribute the fit over the devices of several processes, each of which runs this same command. Under "
        "Slurm, Open MPI and on TPU the processes find each other.",
    )
    yield device("--coordinator", metavar="HOST:PORT", help=f"Address of process 0. {unfound}")
    yield device_count("--num-processes", type=click.IntRange(1, 2**16), help=f"Number of processes. {unfound}")
    yield device_count(
        "--process", type=click.IntRange(0, 2**16 - 1), help=f"Number of this process, from 0. {unfound}"
    )
    yield device_count(
        "--row-devices",
        type=click.IntRange(1, 2**16),
        help="Number of devices that share the rows of one restart. By default as few as keep all devices busy.",
    )


def with_devices(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of `Devices`; the command receives one argument, ``devices``."""

    @functools.wraps(command)
    def collected(**given: Any) -> Any:
        devices = Devices(**{name: given.pop(name) for name in Devices._fields})
        return command(**given, devices=devices)

    return _add_all(collected, _device_options())


def _setting_options() -> Iterator[Decorator]:
    defaults = Config()
    headings = {field.name: field.metadata["help"].rstrip(".") for field in dataclasses.fields(defaults)}
    for path, field, value in iterate_fields(defaults):
        name = "-".join(path).replace("_", "-")
        is_switch = field.type is bool
        shown = ("on" if value else "off") if is_switch else value
        yield option(
            f"--{name}/--no-{name}" if is_switch else f"--{name}",
            "_".join(path),
            type=field.type,
            metavar=None if is_switch else "N" if field.type is int else "VALUE",
            # A default would hide whether the option was given.
            default=None,
            help=f"{field.metadata['help']} Default preset: {shown}.",
            section="Whole fit" if len(path) == 1 else headings[path[0]],
            advanced=True,
        )


def with_config(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add an option per setting; the command receives the preset with these changed as ``config``, beside ``preset``.

    Raises:
        InputError: a setting is out of its bounds.
    """

    @functools.wraps(command)
    def collected(preset: str, **given: Any) -> Any:
        changes: dict[str, Any] = {}
        for path, _, _ in iterate_fields(Config()):
            value = given.pop("_".join(path))
            if value is not None:
                stage = changes if len(path) == 1 else changes.setdefault(path[0], {})
                stage[path[-1]] = value
        config = Config.preset(preset).replace(**changes)
        check_config(config)
        return command(**given, preset=preset, config=config)

    return _add_all(collected, _setting_options())


def _add_all(command: Callable[..., Any], options: Iterator[Decorator]) -> Callable[..., Any]:
    """Add options so that they are listed in their order."""
    for decorate in reversed(list(options)):
        command = decorate(command)
    return command
