"""What is printed, at the edge of a terminal and in a pipe; and what a verdict is called."""

import io
import os
import re
import shlex
from pathlib import Path

import pytest

from mv2v_jax.alignment.score import MIN_HELD_OUT, Reason
from mv2v_jax.cli import output
from mv2v_jax.cli.verdict_text import describe_verdict, list_reasons, next_steps

LONG_PATH = "/a/" + "long-folder/" * 9 + "map of two-spaces.safetensors"


class Terminal(io.StringIO):
    def isatty(self):
        return True

    def fileno(self):
        raise OSError


@pytest.fixture
def show(monkeypatch):
    """A function that calls another with standard output as a terminal, and returns the lines without colours."""

    def call(fun, *args, columns=40, **kwargs):
        stream = Terminal()
        with monkeypatch.context() as patch:
            patch.setenv("COLUMNS", str(columns))
            patch.setattr("sys.stdout", stream)
            fun(*args, **kwargs)
        return re.sub(r"\x1b\[[0-9;]*m", "", stream.getvalue()).splitlines()

    return call


def test_width_is_that_of_the_terminal_and_a_pipe_has_none(monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    assert output.stream_width(io.StringIO()) is None
    assert output.stream_width(Terminal()) == 40
    for unusable in ("", "0", "wide"):
        monkeypatch.setenv("COLUMNS", unusable)
        assert output.stream_width(Terminal()) == 80


def test_text_breaks_at_spaces_only(show):
    text = f"Write the well-known semi-orthogonal map to {LONG_PATH.replace(' ', '-')} and go on with --num-processes."
    lines = show(output.print_text, text)
    assert " ".join(lines).split() == text.split()
    assert all(len(line) <= 40 or " " not in line for line in lines)


def test_a_command_is_continued_so_that_a_shell_can_read_it(show):
    command = ("mv2v", "apply", "my map.safetensors", "x.npy", "-o", "mapped.npy", "--resume")
    lines = show(output.print_command, *command)
    assert lines == ["  mv2v apply 'my map.safetensors' \\", "      x.npy -o mapped.npy --resume"]
    # A shell drops a backslash at the end of a line.
    assert shlex.split("\n".join(lines).replace("\\\n", "")) == list(command)


def test_facts_hang_below_their_value_and_paths_stay_whole(show):
    facts = {"score": 0.123456789, "restart_scores": [0.5] * 8, "map": Path(LONG_PATH)}
    assert show(output.print_facts, facts) == [
        "score           0.12346",
        "restart_scores  [0.5, 0.5, 0.5, 0.5,",
        "                0.5, 0.5, 0.5, 0.5]",
        "map",
        f"  {LONG_PATH}",
    ]


def test_in_a_pipe_every_fact_is_one_line(capsys):
    output.print_facts({"restart_scores": [0.25] * 100, "seed": 3})
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert lines[1] == "seed            3"


def test_a_table_fits_the_terminal(show):
    lines = show(
        output.print_table, ["score", "value", "meaning"], [["top1", 0.123456, "words " * 30]], notes=True, columns=60
    )
    assert max(map(len, lines)) <= 60
    text = "\n".join(lines)
    assert "0.1235" in text
    assert text.count("words") == 30


GOOD = {
    "verdict": "aligned",
    "reason": "restarts_agree_at_every_scale",
    "confidence": 0.99,
    "estimated_top1": 0.7,
    "score": 0.4,
    "closeness": [0.6, 0.5, 0.45, 0.4],
    "restart_agreement": 0.9,
    "restarts": 2,
    "held_out_rows": 100,
}
POOR = {**GOOD, "verdict": "not_aligned", "confidence": 0.01, "reason": "geometries_differ"}
UNSURE = {**GOOD, "verdict": "uncertain", "confidence": 0.5, "reason": "only_coarse_structure"}


@pytest.mark.parametrize(
    ("judged", "start", "reason"),
    [
        (
            GOOD,
            "aligned (confidence 0.99): ",
            "about 70% of rows should find their true partner first among 2,000 rows",
        ),
        (
            {**UNSURE, "held_out_rows": MIN_HELD_OUT - 1},
            "uncertain (confidence 0.50) whether",
            "only 49 rows per space were held out to score the map, and a verdict needs 50, a tenth of 500 rows",
        ),
        ({**UNSURE, "reason": "one_restart_only"}, "uncertain", "a single restart has no other map"),
        (UNSURE, "uncertain", "topics are matched and texts are not. Use more rows"),
        ({**UNSURE, "local_structure": 0.1}, "uncertain", "by noise alone, so that nothing tells"),
        (
            {**UNSURE, "local_structure": 0.5, "local_closeness": 0.1},
            "uncertain",
            "topics match and texts do not: rows",
        ),
        ({**UNSURE, "reason": "ambiguous"}, "uncertain", "another map is as good"),
        ({**UNSURE, "reason": "ambiguous", "symmetry": 0.1}, "uncertain", "a mirrored or turned map is as good"),
        (
            {**UNSURE, "reason": "ambiguous", "symmetry": 2.0, "restart_agreement": 0.1},
            "uncertain",
            "the restarts found different maps that score well",
        ),
        ({**UNSURE, "reason": "too_few_rows"}, "uncertain", "too few distinct rows"),
        ({**UNSURE, "reason": "too_few_rows", "distinct": 0.2}, "uncertain", "are copies of other rows"),
        (POOR, "not aligned (confidence 0.01): ", "hardly nearer to the other space than by chance. Check that"),
        ({**POOR, "reason": "unlike_distributions"}, "not aligned", "the restarts found no common map. Choose texts"),
        (
            # A file of an earlier version.
            {name: POOR[name] for name in ("verdict", "confidence", "estimated_top1")},
            "not aligned",
            "hardly nearer to the other space than by chance, or the restarts disagree",
        ),
    ],
)
def test_a_verdict_is_described_by_its_deciding_reason(judged, start, reason):
    text = describe_verdict(judged)
    assert text.startswith(start)
    assert reason in text
    assert text.endswith(".")
    if judged["verdict"] != "aligned":
        assert text.endswith("Do not use the map before you have checked it on true pairs.")


@pytest.mark.parametrize("reason", [reason for reason in Reason if reason])
def test_every_reason_has_an_explanation_and_advice(reason):
    text = describe_verdict({**UNSURE, "reason": reason.name})
    assert "or the restarts disagree" not in text
    assert text.count(". ") >= 2


def test_reasons_name_what_is_known():
    assert [(name, value) for name, value, _ in list_reasons(GOOD)] == [
        ("reason", "restarts_agree_at_every_scale"),
        ("closeness", "0.60 0.50 0.45 0.40"),
        ("score", 0.4),
        ("restart_agreement", 0.9),
        ("held_out_rows", 100),
        ("restarts", 2),
    ]
    alone = list_reasons({**UNSURE, "restart_agreement": None, "restarts": 1})
    assert alone[3][:2] == ("restart_agreement", "none")
    assert list_reasons({"verdict": "aligned"}) == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"verdict": "aligned"}, "mv2v apply m x -o mapped.npy"),
        ({"reason": "only_coarse_structure"}, "mv2v align x y -o m --restarts 8"),
        ({"reason": "only_coarse_structure", "local_closeness": 0.1}, "mv2v align x y -o m --pairs PX PY"),
        ({"reason": "geometries_differ"}, "mv2v align x y -o m --pairs PX PY"),
        ({"reason": "one_restart_only", "restarts": 1}, "mv2v align x y -o m --restarts 2"),
        ({"reason": "too_few_rows"}, "mv2v align MORE_X MORE_Y -o m"),
        ({"held_out_rows": 3}, "mv2v align MORE_X MORE_Y -o m"),
    ],
)
def test_the_next_command_fits_the_cause(changes, words):
    first, second = next_steps({**UNSURE, **changes}, "x", "y", "m")
    assert " ".join(map(str, first[1])) == words
    assert second[1] == ("mv2v", "evaluate", "m", "X_EVAL", "Y_EVAL")


def test_a_table_for_a_reader_that_is_gone_does_not_end_the_program(monkeypatch):
    reader, writer = os.pipe()
    os.close(reader)
    # Rich writes to the file itself, by its number.
    monkeypatch.setattr("sys.stdout", open(writer, "w", buffering=1))  # noqa: SIM115
    with pytest.raises(BrokenPipeError):
        output.print_table(["score", "value"], [["top1", 0.5]])
