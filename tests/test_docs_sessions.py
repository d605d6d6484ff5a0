"""Every program and command of the pages about scripts, run as they stand there."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BLOCK = re.compile(r"^```(python|console)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page):
    return BLOCK.findall((ROOT / "docs" / page).read_text("utf-8"))


def write_programs(page, folder):
    """The programs of a page, each in the file that its first line names."""
    for kind, text in blocks(page):
        if kind == "python":
            name = re.match(r"# (\w+\.py)\n", text)
            assert name, text
            (folder / name[1]).write_text(text)


def commands(page):
    """Each command of a page, with the lines that it shows."""
    for kind, text in blocks(page):
        if kind == "console":
            for part in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
                line, *shown = part.rstrip("\n").split("\n")
                yield line, shown


def run(line, folder):
    """What a command prints, on one line."""
    words = shlex.split(line)
    start = [sys.executable] if words[0] == "python" else [sys.executable, "-m", words[0]]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200"}
    done = subprocess.run(
        [*start, *words[1:]], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode in (0, 1), done.stderr
    return " ".join((done.stdout + done.stderr).split())


def missing(shown, printed):
    """The lines that a page shows and a command does not print; "..." stands for anything."""
    for line in shown:
        parts = [" ".join(part.split()) for part in line.split("...")]
        if not re.search(".*?".join(re.escape(part) for part in parts), printed):
            yield line


def check(page, folder):
    write_programs(page, folder)
    count = 0
    for line, shown in commands(page):
        printed = run(line, folder)
        assert list(missing(shown, printed)) == [], f"{line}: {printed}"
        count += 1
    assert count >= 2


def test_the_page_about_recording(tmp_path):
    check("record.md", tmp_path)


@pytest.mark.slow
def test_the_pages_about_scripts_as_sides(tmp_path):
    write_programs("record.md", tmp_path)
    check("run-scripts.md", tmp_path)
    check("align.md", tmp_path)
    check("read-a-report.md", tmp_path)


def test_a_line_that_is_not_printed_is_seen():
    assert list(missing(["BUG: a...", "...x"], "BUG: a b")) == ["...x"]
