"""The README's quick starts, run as they stand."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


def block(heading: str, language: str) -> str:
    """The last code block of a language under a heading."""
    section = README.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    return re.findall(rf"```{language}\n(.*?)```", section, re.DOTALL)[-1]


def run(command, folder):
    """Run a block in a folder of its own; what it prints, by line."""
    scripts = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=590, env={**os.environ, "PATH": scripts}
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.slow
def test_training_loop(tmp_path):
    lines = run([sys.executable, "-c", block("Inside a training loop", "python")], tmp_path)
    assert float(lines[-1]) > 0.5


@pytest.mark.slow
def test_more_than_two_spaces(tmp_path):
    lines = run([sys.executable, "-c", block("More than two spaces", "python")], tmp_path)
    assert lines[-1] == "(256, 384)"
    assert "True" not in lines[0]


@pytest.mark.slow
@pytest.mark.parametrize("language", ["python", "sh"])
def test_quick_start(tmp_path, language):
    if language == "python":
        command = [sys.executable, "-c", block("In Python", "python")]
    else:
        command = ["bash", "-euc", block("On the command line", "sh")]
    lines = run(command, tmp_path)
    if language == "python":
        # The second line is the share of texts found among 2,000; chance is 0.0005.
        assert float(lines[1]) > 0.5
    else:
        assert (tmp_path / "mapped.npy").exists()
        assert "mean_rank" in "\n".join(lines)
