"""``--help`` of every command: examples and everyday options first, every line understandable alone."""

import subprocess
import sys

import click
import pytest
from cli.commands import run
from click.testing import CliRunner

from mv2v_jax.cli import cli
from mv2v_jax.cli.help import Formatter
from mv2v_jax.config import Config
from mv2v_jax.settings import iterate_fields
from mv2v_jax.version import __version__

CONTEXT = click.Context(cli)
SUBCOMMANDS = {name: cli.get_command(CONTEXT, name) for name in cli.list_commands(CONTEXT)}
COMMANDS = {"mv2v": cli, **SUBCOMMANDS}
EVERYDAY = {
    "mv2v": ["--compilation-cache", "--log-file", "--version"],
    "demo": ["--seed", "--restarts", "--export", "--json"],
    "align": [
        *("--output", "--preset", "--seed", "--restarts", "--settled", "--pairs", "--accept", "--json"),
        *("--all-devices", "--distributed", "--coordinator", "--num-processes", "--process", "--row-devices"),
    ],
    "apply": ["--output", "--frame", "--metric", "--dims", "--inverse", "--strict", "--resume", "--accept"],
    "evaluate": ["--json"],
    "report": ["--output", "--texts-x", "--texts-y", "--pairs", "--index-size", "--searches", "--preset", "--json"],
    "move": ["--metric", "--dims", "--inverse", "--strict", "--dry-run", "--resume", "--state", "--accept"],
    "evaluate-search": ["--rows", "--metric", "--strict", "--json"],
    "info": ["--json"],
    "stability": [
        *("--output", "--restarts", "--chunk", "--sizes", "--settled", "--pairs", "--size-restarts", "--bootstraps"),
        *("--resume", "--plots", "--no-plots", "--preset", "--seed", "--json"),
        *("--all-devices", "--distributed", "--coordinator", "--num-processes", "--process", "--row-devices"),
    ],
}
SETTINGS = ["--" + "-".join(path).replace("_", "-") for path, _, _ in iterate_fields(Config())]


def help_of(name):
    done = CliRunner().invoke(cli, [*([] if name == "mv2v" else [name]), "--help"])
    assert done.exit_code == 0
    return done.output


def options_of(name):
    command = COMMANDS[name]
    return [
        parameter
        for parameter in command.get_params(click.Context(command, info_name=name))
        if isinstance(parameter, click.Option)
    ]


@pytest.mark.parametrize("name", COMMANDS)
def test_examples_come_first_and_settings_last(name):
    text = help_of(name)
    sections = [line for line in text.splitlines() if line.endswith(":") and not line.startswith(" ")]
    examples = text.split("Examples:\n")[1].split("\n\n")[0]
    assert examples.strip().startswith("mv2v" if name == "mv2v" else f"mv2v {name}")
    assert sections.index("Examples:") < sections.index("Options:")
    everyday, _, advanced = text.partition("\nAdvanced:\n")
    for flag in EVERYDAY[name]:
        assert f"{flag} " in everyday or f"{flag}\n" in everyday, flag
    if name in ("align", "stability"):
        assert sections[-1] == "Advanced:"
        for flag in SETTINGS:
            assert flag in advanced, flag
            assert flag not in everyday, flag


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_is_described_in_whole_sentences(name):
    for option in options_of(name):
        assert option.help, option.name
        assert option.help[0].isupper(), option.help
        assert option.help.endswith("."), option.help


@pytest.mark.parametrize("name", SUBCOMMANDS)
def test_every_argument_is_described(name):
    command = SUBCOMMANDS[name]
    arguments = [parameter.metavar for parameter in command.params if isinstance(parameter, click.Argument)]
    assert list(command.arguments) == arguments
    assert all(text[0].isupper() and text.endswith(".") for text in command.arguments.values())


@pytest.mark.parametrize("name", COMMANDS)
def test_no_line_is_longer_than_the_terminal_and_no_flag_is_torn(name):
    text = help_of(name)
    assert max(map(len, text.splitlines())) <= 80
    for option in options_of(name):
        for flag in (*option.opts, *option.secondary_opts):
            assert flag in text
    # A line that ends in a hyphen would be a torn flag.
    assert not [line for line in text.splitlines() if line.endswith("-")]


@pytest.mark.parametrize("name", SUBCOMMANDS)
def test_examples_are_commands_that_can_be_parsed(name):
    """Of every example all flags exist, and all arguments are given."""
    for line in SUBCOMMANDS[name].examples:
        if not line.startswith("#"):
            words = line.split()
            assert words[:2] == ["mv2v", name]
            SUBCOMMANDS[name].make_context(name, words[2:])


def test_a_setting_is_shown_with_its_default_of_the_preset():
    assert "Number of anchor sets, each from its own random rows. Default preset: 30." in " ".join(
        help_of("align").split()
    )
    assert "--published-project / --no-published-project" in help_of("align")


@pytest.mark.parametrize("name", SUBCOMMANDS)
def test_every_command_is_listed_by_the_first_sentence_of_its_help(name):
    """The list is written apart from the commands, so that it needs none of their imports."""
    assert cli.summaries[name] == SUBCOMMANDS[name].help.split("\n")[0]


def test_the_list_of_commands_needs_neither_jax_nor_rich(tmp_path):
    program = "import sys; sys.argv[1:] = ['--help']; from mv2v_jax.__main__ import main\n"
    program += "try: main()\nexcept SystemExit: print({'jax', 'numpy', 'rich'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.endswith("\nset()\n")


def test_an_unknown_command_is_one_sentence(tmp_path):
    done = run("alihn", cwd=tmp_path)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "No such command 'alihn'" in done.stderr


def test_a_wide_term_has_its_description_on_the_next_line():
    formatter = Formatter(width=60)
    with formatter.section("Section"):
        formatter.write_dl([("--short", "Text."), ("--a-very-long-option-of-a-command", "Words " * 12)])
    lines = formatter.getvalue().splitlines()
    assert lines[1] == f"  {'--short':<30}  Text."
    assert lines[2] == "  --a-very-long-option-of-a-command"
    assert all(line == f"{'':34}Words Words Words Words" for line in lines[3:])


def test_help_and_version_as_a_user_asks_for_them(tmp_path):
    assert "--published-smoothing" in run("align", "--help", cwd=tmp_path).stdout
    assert __version__ in CliRunner().invoke(cli, ["--version"]).output
    bare = CliRunner().invoke(cli)
    assert bare.exit_code == 0
    assert "Commands:" in bare.output
