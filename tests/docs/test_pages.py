"""The examples of the README and of the pages in docs/, run as they are printed.

A block of Python or shell has a comment on the line before it:

- ``<!-- run: fast -->``: runs in every test run.
- ``<!-- run: slow -->``: runs with ``-m slow``, in a process of its own.
- ``<!-- run: no, REASON -->``: does not run.

All fast blocks of a page in one language are one program, in their order, and so are all slow ones.
"""

import contextlib
import io
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
# Blocks that .ci/run takes from the README are marked by this instead.
COMMAND = re.compile(r"<!-- command: \w+ -->")
MARK = re.compile(r"<!-- run: (fast|slow|no, .+) -->")
FENCE = re.compile(r"^(?P<indent> *)```(?P<language>\w+)\n(?P<code>.*?)^(?P=indent)```$", re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    """One block of code of a page; ``mark`` is the line before it."""

    language: str
    mark: str
    code: str


def blocks_of(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    blocks = []
    for fence in FENCE.finditer(text):
        # A program that a page shows whole, fenced by ``` { .python }, has tests of its own.
        if fence["language"] in ("python", "sh"):
            mark = text[: fence.start()].rstrip("\n").rpartition("\n")[2]
            blocks.append(Block(language=fence["language"], mark=mark, code=fence["code"]))
    return blocks


def programs_of(page: Path, speed: str) -> dict[str, str]:
    """The programs of a page by language, the first language on the page first."""
    programs: dict[str, str] = {}
    for block in blocks_of(page):
        mark = MARK.fullmatch(block.mark)
        if mark and mark[1] == speed:
            programs[block.language] = programs.get(block.language, "") + block.code
    return programs


def pages_with(speed: str) -> list[str]:
    return [page.relative_to(ROOT).as_posix() for page in PAGES if programs_of(page, speed)]


def run_apart(language: str, code: str, folder: Path) -> list[str]:
    """Run a program in a process of its own, with the scripts of this environment; the lines that it prints."""
    command = [sys.executable, "-c", code] if language == "python" else ["bash", "-euc", code]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=590, env={**os.environ, "PATH": path}
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def check_readme(printed: dict[str, list[str]], folder: Path) -> None:
    # The last line is the share of texts found among 2,000; chance is 0.0005.
    assert float(printed["python"][-1]) > 0.5
    assert (folder / "mapped.npy").exists()
    assert "mean_rank" in "\n".join(printed["sh"])


def check_command_line(printed: dict[str, list[str]], folder: Path) -> None:
    assert (folder / "mapped.npy").exists()
    assert (folder / "back.npy").exists()
    assert "mean_rank" in "\n".join(printed["sh"])


def check_several_spaces(printed: dict[str, list[str]], folder: Path) -> None:
    assert printed["python"][-1] == "(256, 384)"
    # None of the three maps is called wrong.
    assert "True" not in printed["python"][0]


def check_maps_anywhere(printed: dict[str, list[str]], folder: Path) -> None:
    assert printed["python"][0] == "PortableMap(384 to 256 dimensions, float32) (2000, 256) (2000, 384)"
    assert printed["python"][1:] == ["(5, 10)", "(5, 256)"]


def check_top1(line: int):
    def check(printed: dict[str, list[str]], folder: Path) -> None:
        assert float(printed["python"][line]) > 0.5

    return check


def check_verdict(printed: dict[str, list[str]], folder: Path) -> None:
    assert printed["python"][0] == "aligned"
    top1, foscttm = map(float, printed["python"][-1].split())
    assert top1 > 0.5
    assert foscttm < 0.05


def check_large_data(printed: dict[str, list[str]], folder: Path) -> None:
    assert printed["python"][0] == "(6000, 384) (4, 384) (2, 384)"
    assert (folder / "mapped.npy").exists()


def check_tables(printed: dict[str, list[str]], folder: Path) -> None:
    assert (folder / "mapped.parquet").exists()
    # The rows of y are in the opposite order: without their ids, hardly any pair would be right.
    assert any("of 2,000 mapped rows find their true partner first" in line for line in printed["sh"])


# What a page's slow programs must have printed and written, beside ending without an error.
CHECKS = {
    "README.md": check_readme,
    "docs/command-line.md": check_command_line,
    "docs/consensus.md": check_top1(0),
    "docs/devices.md": check_top1(-1),
    "docs/large-data.md": check_large_data,
    "docs/maps-anywhere.md": check_maps_anywhere,
    "docs/seed-pairs.md": check_top1(-1),
    "docs/several-spaces.md": check_several_spaces,
    "docs/tables.md": check_tables,
    "docs/training-loops.md": check_top1(0),
    "docs/verdict.md": check_verdict,
}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_block_is_marked(page):
    unmarked = [
        block.code for block in blocks_of(page) if not (MARK.fullmatch(block.mark) or COMMAND.fullmatch(block.mark))
    ]
    assert not unmarked


@pytest.mark.parametrize("page", PAGES[:2], ids=lambda page: page.name)
def test_links_of_pages_outside_docs_lead_somewhere(page):
    # Those inside are checked by `mkdocs build --strict`.
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    assert [link for link in links if not (ROOT / link).exists()] == []


@pytest.mark.parametrize("page", pages_with("fast"))
def test_fast_blocks(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    programs = programs_of(ROOT / page, "fast")
    assert list(programs) == ["python"], "shell blocks start a process: mark them slow"
    with contextlib.redirect_stdout(io.StringIO()):
        exec(compile(programs["python"], page, "exec"), {"__name__": "__main__"})


@pytest.mark.slow
@pytest.mark.parametrize("page", pages_with("slow"))
def test_slow_blocks(page, tmp_path):
    printed = {
        language: run_apart(language, code, tmp_path) for language, code in programs_of(ROOT / page, "slow").items()
    }
    if page in CHECKS:
        CHECKS[page](printed, tmp_path)


def test_every_check_has_a_page():
    assert set(CHECKS) <= set(pages_with("slow"))
