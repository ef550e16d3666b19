"""The command line, one file per command: ``mv2v demo | align | stability | apply | evaluate | info``."""

import os
import traceback
from pathlib import Path

import click
import jax

from mv2v_jax.cli.align import align_command
from mv2v_jax.cli.apply import apply_command
from mv2v_jax.cli.demo import demo_command
from mv2v_jax.cli.evaluate import evaluate_command
from mv2v_jax.cli.help import Group
from mv2v_jax.cli.info import info_command
from mv2v_jax.cli.options import option
from mv2v_jax.cli.output import print_text
from mv2v_jax.cli.shared import make_folder
from mv2v_jax.cli.stability import stability_command
from mv2v_jax.errors import InputError
from mv2v_jax.runs.processes import LostProcess, exit_together, translate_process_loss
from mv2v_jax.version import __version__

_INPUT_EXIT, _LOST_EXIT, _INTERRUPTED_EXIT = 2, 4, 130


@click.group(
    cls=Group,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    examples=[
        "mv2v demo",
        "mv2v align x.npy y.npy -o map.safetensors",
        "mv2v apply map.safetensors x.npy -o mapped.npy",
    ],
)
@click.version_option(__version__, prog_name="mv2v")
@option(
    "--compilation-cache",
    type=click.Path(path_type=Path),
    envvar="MV2V_COMPILATION_CACHE",
    show_envvar=True,
    help="Folder to keep compiled functions in, made if it is missing: the next run on data of similar size compiles "
    "nothing.",
)
@click.pass_context
def cli(context: click.Context, compilation_cache: Path | None) -> None:
    """Learn a linear map between two embedding spaces without a single known pair.

    Embeddings are read from .npy, .npz, .safetensors and .pt files, from folders of .npy shards, and from tables in
    .parquet, .arrow, .jsonl and .csv; FILE:KEY names one of several arrays or columns in a file.
    """
    if compilation_cache is not None:
        _use_cache(compilation_cache)
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


for _command in (demo_command, align_command, apply_command, evaluate_command, info_command, stability_command):
    cli.add_command(_command)


def _use_cache(folder: Path) -> None:
    """Let JAX keep everything it compiles in ``folder``, even what compiles faster than JAX's minimum of a second."""
    make_folder(folder, "--compilation-cache")
    if not os.access(folder, os.W_OK):
        raise InputError(
            f"--compilation-cache: {folder} must be a folder that can be written to, found it read-only; name another"
        )
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def main() -> None:
    """Entry point of ``mv2v``: runs a command and ends the process.

    The exit code is 0, or 3 if ``align`` ends with the verdict ``not_aligned``. Errors are one sentence on standard
    error: 2 for what the user gave, 4 if another process of the run is gone, 130 for Ctrl-C. A defect of this package
    prints its traceback and ends with 1.
    """
    try:
        with translate_process_loss():
            code = cli.main(prog_name="mv2v", standalone_mode=False)
        exit_together(code if isinstance(code, int) else 0)
    except InputError as error:
        message, code = str(error), _INPUT_EXIT
    except LostProcess as error:
        message, code = str(error), _LOST_EXIT
    except click.ClickException as error:
        message, code = _describe(error), error.exit_code
    except click.Abort:
        message, code = "interrupted; no file is left half-written", _INTERRUPTED_EXIT
    except Exception:
        # With several processes this one must end as well, or the others would wait for it.
        traceback.print_exc()
        exit_together(1)
    print_text(f"Error: {message}", to_stderr=True)
    exit_together(code)


def _describe(error: click.ClickException) -> str:
    """Click's own message and, for wrong usage, the command that describes the right one."""
    message = error.format_message()
    if not isinstance(error, click.UsageError) or error.ctx is None:
        return message
    return f"{message}{'' if message.endswith(('.', '?', ')')) else '.'} See {error.ctx.command_path} --help."
