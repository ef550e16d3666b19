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


@pytest.mark.parametrize("language", ["python", "sh"])
def test_quick_start(tmp_path, language):
    if language == "python":
        command = [sys.executable, "-c", block("In Python", "python")]
    else:
        command = ["bash", "-euc", block("On the command line", "sh")]
    scripts = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, timeout=590, env={**os.environ, "PATH": scripts}
    )
    assert done.returncode == 0, done.stderr
    if language == "python":
        # The second line is the share of texts found among 2,000; chance is 0.0005.
        assert float(done.stdout.splitlines()[1]) > 0.5
    else:
        assert (tmp_path / "mapped.npy").exists()
        assert "mean_rank" in done.stdout
