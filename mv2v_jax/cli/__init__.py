"""The command line, one file per command, such as ``mv2v align``."""

import os
import sys
import traceback
import warnings
from typing import NoReturn

import click

from mv2v_jax.cli.failures import describe_failure
from mv2v_jax.cli.help import Group, Option
from mv2v_jax.cli.log import start_log
from mv2v_jax.cli.output import print_text, survive_encodings
from mv2v_jax.interrupts import losing_no_interrupt
from mv2v_jax.version import __version__

CACHE_VARIABLE = "MV2V_COMPILATION_CACHE"


@click.group(
    cls=Group,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    examples=[
        "mv2v demo",
        "mv2v align x.npy y.npy -o map.safetensors",
        "mv2v apply map.safetensors x.npy -o mapped.npy",
    ],
    summaries={
        "demo": "Align the bundled real embeddings and measure the map.",
        "align": "Learn the map from the space of X to the space of Y.",
        "apply": "Map the rows of X into the space of Y.",
        "evaluate": "Measure a map on true pairs.",
        "move": "Move all rows of SOURCE through a map into a new collection.",
        "report": "Write a page that shows whether a map works and where.",
        "evaluate-search": "Measure how an index is searched with a map, before anything is written.",
        "info": "Show a map's verdict, the reasons for it and its origin.",
        "stability": "Search many times and compare the maps that are found.",
    },
)
@click.version_option(__version__, prog_name="mv2v")
@click.option(
    "--compilation-cache",
    cls=Option,
    metavar="FOLDER",
    envvar=CACHE_VARIABLE,
    show_envvar=True,
    help="Folder to keep compiled functions in, made if it is missing: the next run on data of similar size compiles "
    "nothing. By default mv2v_jax in the user's cache folder, at most some 256 MiB. An empty name keeps nothing.",
)
@click.option(
    "--log-file",
    cls=Option,
    metavar="FILE",
    help="File to append messages to: what was compiled and run, in how many seconds, and every warning and error.",
)
@click.pass_context
def cli(context: click.Context, compilation_cache: str | None, log_file: str | None) -> None:
    """Learn a linear map between two embedding spaces without a single known pair.

    Embeddings are read from .npy, .npz, .safetensors and .pt files, from folders of .npy shards, and from tables in
    .parquet, .arrow, .jsonl and .csv; FILE:KEY names one of several arrays or columns in a file.
    """
    if log_file is not None:
        start_log(log_file)
    # Click takes an empty variable for one that is not set.
    context.obj = os.environ.get(CACHE_VARIABLE) if compilation_cache is None else compilation_cache
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


def main() -> None:
    """Entry point of ``mv2v``: runs a command and ends the process.

    The exit code is 0, or 3 if ``align`` or ``stability`` ends with the verdict ``not_aligned``. Errors are one
    sentence on standard error: 2 for what the user gave, 4 if another process of the run is gone, 130 for Ctrl-C. A
    defect of this package prints its traceback and ends with 1.
    """
    survive_encodings()
    try:
        code = _run()
        sys.stdout.flush()
    except Exception as error:
        failure = describe_failure(error)
        if failure is None:
            # With several processes this one must end as well, or the others would wait for it.
            traceback.print_exc()
            _end(1)
        message, code = failure
        if message:
            print_text(f"Error: {message}", to_stderr=True)
    _end(code)


def _run() -> int:
    """Run the command that was typed; returns its exit code."""
    with warnings.catch_warnings(), losing_no_interrupt():
        if not sys.warnoptions:
            # Those of libraries, beside which our sentence would be lost.
            warnings.simplefilter("ignore")
        code = cli.main(prog_name="mv2v", standalone_mode=False)
    return code if isinstance(code, int) else 0


def _end(code: int) -> NoReturn:
    """End this process, together with the others of the run; without JAX there are none."""
    if "jax" not in sys.modules:
        sys.exit(code)
    from mv2v_jax.runs.processes import exit_together

    exit_together(code)
