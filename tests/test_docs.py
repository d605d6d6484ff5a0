"""What the documents promise: commands that parse, names that exist, fields that are there."""

import glob
import json
import re
import runpy
import shlex
import subprocess
from pathlib import Path

import click
import pytest

import harness
from harness.cli.main import harness as command_line
from harness.models.ops import OPS, parameters
from harness.trace.schema import Header, StepEntry, TensorEntry

pytest_plugins = ["pytester"]

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text("utf-8")
PYTEST = (ROOT / "docs" / "pytest.md").read_text("utf-8")
PAGES = (
    "traces/README.md",
    "logs/README.md",
    *sorted(f"docs/{p.name}" for p in (ROOT / "docs").glob("*.md")),
)
FORMAT = (ROOT / "traces" / "README.md").read_text("utf-8")


def commands():
    """Every `harness ...` that the README shows at a prompt."""
    found = re.findall(r"^\$ (?:harness|python -m harness\.(?=run)) ?(.*)$", README, re.MULTILINE)
    return [line.split("#")[0].strip() for line in found]


@pytest.mark.parametrize("line", commands())
def test_a_command_of_the_readme_parses(line):
    words = shlex.split(line)
    command, context = command_line, click.Context(command_line)
    while isinstance(command, click.Group):
        command = command.get_command(context, words.pop(0))
        assert command is not None
    command.make_context("harness", words)


def test_the_readme_shows_commands():
    assert len(commands()) >= 5


def test_the_two_commands_and_the_others_are_targets_of_the_makefile():
    makefile = (ROOT / "Makefile").read_text("utf-8")
    for target in re.findall(r"make ([a-z-]+)", README):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
    assert "$ make demo" in README[:3500]
    assert "$ make test" in README[:4000]


def test_every_file_that_the_documents_link_to_exists():
    for document in ("README.md", *PAGES):
        text = (ROOT / document).read_text("utf-8")
        for link in re.findall(r"\]\((?!http)([^)#]+)\)", text):
            assert (ROOT / document).parent.joinpath(link).exists(), f"{document}: {link}"


def test_the_format_page_describes_exactly_the_fields_there_are():
    for section, record in (("## `trace.json`", Header), ("## `index.jsonl`", TensorEntry)):
        table = FORMAT.split(section)[1].split("\n## ")[0]
        rows = re.findall(r"^\| (`[^|]*) \|", table, re.MULTILINE)
        named = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
        assert named == set(record.__struct_encode_fields__)
    assert all(f'"{field}"' in FORMAT for field in StepEntry.__struct_fields__)


def test_the_format_page_has_each_op_with_its_operands_and_arguments():
    table = FORMAT.split("## Stages")[1].split("\n## ")[0]
    written = re.findall(r"`([a-z]\w*)\(([^`]*)\)`", table)
    assert len(written) > 60
    for name, inside in written:
        takes = parameters(name)
        more = ["..."] if takes.more else []
        args = [f"{key}={value}" for key, value in takes.defaults.items()]
        assert inside == ", ".join([*takes.operands, *more, *takes.needed, *args]), name
    for name, op in OPS.items():  # those with a derivative are what a forward pass is made of
        assert op.derivative is None or name in dict(written)


def test_the_stages_that_the_format_page_writes_are_those_that_it_shows(tmp_path):
    section = FORMAT.split("## Stages")[1]
    shown = json.loads(section.split("```json\n")[1].split("```")[0])
    tensors = dict.fromkeys(["forward/h", "forward/y"], 1.0)
    with harness.TraceWriter(tmp_path / "a.trace", label="a", dtype="float32") as trace:
        code = section.split("```python\n")[1].split("```")[0]
        exec(code, dict(harness=harness, trace=trace, tensors=tensors, step=1))
    (line,) = (tmp_path / "a.trace/index.jsonl").read_text().splitlines()
    written = json.loads(line)["tensors"][1]
    assert {key: written[key] for key in ("name", "op", "from")} == {
        key: shown[key] for key in ("name", "op", "from")
    }


def test_the_readme_states_the_tolerances_of_the_table():
    from harness.compare import DEFAULT_TABLE

    rows = dict(re.findall(r"^\| (.+?) \| (\d+)(?::.*)? \|$", README, re.MULTILINE))
    assert rows["`inputs/*`"] == "0"
    assert rows["`forward/loss`, `update/global_norm`"] == "16"
    assert rows["all others"] == "64"
    stated = {"inputs/*": 0, "forward/loss": 16, "update/global_norm": 16, "*": 64}
    assert dict(DEFAULT_TABLE) == stated


def test_the_reader_without_the_harness_on_the_format_page_works(tmp_path, monkeypatch, capsys):
    with harness.TraceWriter(tmp_path / "traces/pt.trace", label="pt", dtype="float32") as trace:
        trace.write(1, {"forward/loss": 2.5})
    monkeypatch.chdir(tmp_path)
    code = FORMAT.split("```python\n")[1].split("```")[0]
    exec(compile(code.replace("open(", "Path_open("), "format", "exec"), {"Path_open": _open})
    assert capsys.readouterr().out == "1 forward/loss 2.5 ()\n"


def _open(path):
    """As open(), without a file left open behind the example's back."""
    return Path(path).read_text("utf-8").splitlines()


def test_the_example_finds_what_it_says(capsys):
    runpy.run_path(str(ROOT / "examples" / "trace_your_own.py"), run_name="__main__")
    assert capsys.readouterr().out.splitlines() == [
        "diverged at step 6: params/w (0.647055 | 0.415315)",
        "the last tensor that agreed: grads/w",
    ]


def test_public_names_are_documented_and_there_is_nothing_else():
    assert dir(harness) == harness.__all__
    for name in harness.__all__:
        assert getattr(harness, name).__doc__, name
    with pytest.raises(AttributeError):
        _ = harness.nonsense


def blocks(text):
    """The language and the text of every block of code, in order."""
    return re.findall(r"^```(\w*)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


@pytest.mark.slow
def test_the_page_on_pytest_is_what_happens(pytester, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(pytester.path / "cache"))
    commands = 0
    for language, text in blocks(PYTEST):
        if language == "python":
            (pytester.path / text.split()[1]).write_text(text)
        elif language == "console":
            for command, shown in re.findall(r"^\$ (.*)\n((?:[^$].*\n)*)", text, re.MULTILINE):
                commands += 1
                see(pytester, shlex.split(command), shown.splitlines())
    assert commands >= 4
    last = pytester.runpytest_inprocess("-p", "harness.pytest_plugin", "test_arrays.py")
    last.assert_outcomes(passed=1)


def see(pytester, words, shown):
    """Run a command of the page, and see that it prints what is shown there."""
    if words[0] == "harness":
        command = command_line.get_command(click.Context(command_line), words[1])
        command.make_context("harness", words[2:])
        return
    assert words[0] == "pytest"
    torch = "import torch" in (pytester.path / words[1]).read_text()
    run = pytester.runpytest_subprocess if torch else pytester.runpytest_inprocess
    result = run("-p", "harness.pytest_plugin", *words[1:])
    wanted = (line.split("...") for line in shown if line != "...")
    result.stdout.fnmatch_lines(["*".join(map(glob.escape, parts)) for parts in wanted])


def test_the_workflow_is_one_and_calls_what_there_is():
    yaml = pytest.importorskip("yaml")
    text = (ROOT / "docs" / "upgrade.yml").read_text("utf-8")
    workflow = yaml.safe_load(text)
    (job,) = workflow["jobs"].values()
    matrix = job["strategy"]["matrix"]
    assert all(set(row) == set(matrix) - {"include"} for row in matrix["include"])
    named = set(re.findall(r"matrix\.(\w+)", text))
    assert named == set(matrix) - {"include"}
    assert all(("uses" in step) != ("run" in step) for step in job["steps"])
    (tests,) = (step["run"] for step in job["steps"] if "-m pytest" in step.get("run", ""))
    folder = re.search(r"--basetemp=(\S+)", tests)[1]
    assert f"path: {folder}\n" in text
    assert not re.search(r"\w\.(org|com|io)\b", text)


def test_no_corpus_is_committed():
    done = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        pytest.skip("not a git checkout")
    assert not [name for name in done.stdout.split() if re.search(r"(ptb|input)\S*\.txt$", name)]
