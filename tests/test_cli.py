"""The command line: exit codes, JSON, messages, and what it does not import."""

import json
import subprocess
import sys

import numpy as np
import pytest

from harness import TraceWriter
from harness.cli.main import main

FORBIDDEN = ("torch", "tensorflow", "jax", "matplotlib")
COMMANDS = (
    [],
    ["run"],
    ["diff"],
    ["show"],
    ["trace"],
    ["trace", "check"],
    ["bench"],
    ["corpus"],
    ["weights"],
    ["weights", "init"],
    ["weights", "show"],
    ["weights", "check"],
    ["weights", "convert"],
)


def run(*arguments):
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    return ended.value.code


def write(path, *steps, label="a", complete=True):
    writer = TraceWriter(path, label=label, dtype="float32")
    for number, tensors in enumerate(steps, start=1):
        arrays = {name: np.asarray(value, np.float32) for name, value in tensors.items()}
        writer.write(number, arrays)
    writer.close(complete)
    return path


@pytest.fixture
def pair(tmp_path):
    same = {"forward/h": [1.0, 2.0], "forward/loss": 3.0}
    a = write(tmp_path / "a.trace", same, {"forward/h": [1.0, 2.5], "forward/loss": 3.0})
    b = write(tmp_path / "b.trace", same, {"forward/h": [1.0, 2.0], "forward/loss": 3.0}, label="b")
    return a, b


def test_equivalent_traces_exit_with_0(pair, capsys):
    assert run("diff", pair[0], pair[0]) == 0
    assert capsys.readouterr().out.startswith("IDENTICAL")


def test_divergent_traces_exit_with_1_and_name_the_place(pair, capsys):
    assert run("diff", *pair) == 1
    assert capsys.readouterr().out.splitlines()[0] == "DIVERGED at step 2: forward/h"


def test_a_wide_tolerance_lets_them_pass(pair, capsys):
    assert run("diff", *pair, "--rtol", 0, "--atol", 0.5) == 0
    assert run("diff", *pair, "--rtol", 0, "--atol", 0.49) == 1
    assert "numpy.allclose" in capsys.readouterr().out


def test_the_json_of_a_diff_is_one_object_with_the_documented_keys(pair, capsys):
    assert run("diff", *pair, "--json") == 1
    found = json.loads(capsys.readouterr().out)
    assert found["status"] == "diverged"
    assert found["first_divergence"]["step"] == 2
    assert found["first_divergence"]["tensor"] == "forward/h"
    assert found["first_divergence"]["index"] == [1]
    assert (found["first_divergence"]["a"], found["first_divergence"]["b"]) == (2.5, 2.0)
    assert found["first_divergence"]["max_rel_diff"] == 0.25
    assert {"steps_compared", "tensors_compared", "tolerance", "onset", "structure"} <= set(found)


@pytest.mark.parametrize(
    "arguments",
    [
        ["diff", "none.trace", "none.trace"],
        ["diff", "A", "A", "--rtol", "-1"],
        ["diff", "A", "A", "--steps", "3:2"],
        ["diff", "A", "A", "--steps", "x"],
        ["diff", "A", "A", "--include", "no such tensor"],
        ["diff", "A", "A", "--steps", "7:"],
        ["diff", "A"],
        ["show", "none.trace"],
        ["show", "A", "--step", "9"],
        ["show", "A", "forward/hh"],
        ["show", "A", "forward/h", "--slice", "5"],
        ["show", "A", "forward/h", "--slice", "__import__('os')"],
        ["trace", "check", "none.trace"],
        ["weights", "show", "none.npz"],
        ["weights", "check", "none.npz"],
        ["weights", "convert", "none.npz", "x.npz", "--to", "torch"],
        ["weights", "init", "x.txt"],
        ["weights", "init", "w.npz", "--set", "lr=2=3"],
        ["weights", "init", "w.npz", "--data", "none"],
        ["corpus", "--data", "none"],
        ["run", "--side", "xx"],
        ["run", "--side", "pt", "--side", "pt"],
        ["run", "--set", "clip=wrong"],
        ["run", "--set", "xx:lr=1"],
        ["run", "--set", "lr"],
        ["run", "--python", "pt"],
        ["run", "--python", "xx=python"],
        ["run", "--trace", "0"],
        ["run", "--every", "0"],
        ["run", "--rtol", "-1"],
        ["run", "--steps", "0:"],
        ["run", "--weights", "none.npz"],
        ["run", "--data", "none"],
        ["run", "--side", "../x=pt"],
        ["run", "--side", "pt", "--batch-size", "100000"],
        ["bench", "--rounds", "0"],
        ["nonsense"],
    ],
    ids=" ".join,
)
def test_bad_input_exits_with_2_and_one_line(arguments, pair, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run(*[str(pair[0]) if argument == "A" else argument for argument in arguments]) == 2
    seen = capsys.readouterr()
    assert seen.out == ""
    last = seen.err.strip().splitlines()[-1]
    assert last.lower().startswith("error: ")
    assert "Traceback" not in seen.err
    assert "internal" not in seen.err


def test_debug_shows_where_an_error_came_from(capsys):
    assert run("show", "none.trace", "--debug") == 2
    assert "Traceback" in capsys.readouterr().err


def test_an_error_cannot_write_escape_codes_to_the_terminal(capsys):
    assert run("show", "\x1b[31mred") == 2
    assert "\x1b" not in capsys.readouterr().err


def test_show_lists_tensors_and_prints_values(pair, capsys):
    assert run("show", pair[0]) == 0
    assert "forward/loss" in capsys.readouterr().out
    assert run("show", pair[0], "forward/h", "--step", 2, "--slice", "1") == 0
    assert "2.5" in capsys.readouterr().out
    assert run("show", pair[0], "forward/h", "--step", 2, "--json") == 0
    assert json.loads(capsys.readouterr().out)["values"] == [1.0, 2.5]


def test_trace_check_tells_sound_from_stopped_from_damaged(pair, tmp_path, capsys):
    assert run("trace", "check", pair[0]) == 0
    assert run("trace", "check", write(tmp_path / "c.trace", {"x": 1.0}, complete=False)) == 1
    file = pair[0] / "step-00000002.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    assert run("trace", "check", pair[0]) == 2
    assert "does not match its hash" in capsys.readouterr().out


def test_weights_are_made_shown_checked_and_converted(tmp_path, capsys):
    made, torch_file = tmp_path / "w.npz", tmp_path / "torch.safetensors"
    assert run("weights", "init", made, "--set", "hidden_size=6", "--set", "embed_size=4") == 0
    assert run("weights", "show", made) == 0
    assert "layer1/w_h" in capsys.readouterr().out
    assert run("weights", "check", made) == 0
    capsys.readouterr()
    assert run("weights", "check", made, "--json") == 0
    assert json.loads(capsys.readouterr().out)["hidden_size"] == 6
    assert run("weights", "convert", made, torch_file, "--to", "torch") == 0
    assert run("weights", "show", torch_file) == 0
    assert "rnn.weight_hh_l1" in capsys.readouterr().out
    assert run("weights", "check", made, "--model", "zaremba-small") == 2
    assert "expected [256, 200]" in capsys.readouterr().err


def test_the_builtin_corpus_says_its_entropy(capsys):
    assert run("corpus") == 0
    assert "exact entropy 2.714155 nats per token" in capsys.readouterr().out
    assert run("corpus", "--json") == 0
    assert json.loads(capsys.readouterr().out)["train"] == 100_000


def test_a_plot_is_drawn(pair, tmp_path, capsys):
    assert run("diff", *pair, "--plot", tmp_path / "p.png") == 1
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
    assert run("diff", *pair, "--plot", tmp_path / "none" / "p.png") == 2
    assert run("diff", *pair, "--plot", tmp_path / "p.nonsense") == 2
    assert "p.nonsense" in capsys.readouterr().err


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_has_help_and_those_that_act_an_example(command, capsys):
    assert run(*command, "--help") == 0
    shown = capsys.readouterr().out
    assert "Usage: harness" in shown
    if command not in (["trace"], ["weights"]):
        assert "Example:" in shown
        assert f"harness {' '.join(command)}".strip() in shown.split("Example:")[1]


def loaded_by(code):
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys; print(*sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    )
    return {name.split(".")[0] for name in done.stdout.splitlines()[-1].split()}


def test_importing_the_library_and_using_all_of_it_imports_no_framework():
    code = "import harness\nfor name in harness.__all__: getattr(harness, name)"
    assert not loaded_by(code).intersection(FORBIDDEN)


def test_help_does_not_even_import_numpy():
    code = "from harness.cli.main import main\ntry: main(['--help'])\nexcept SystemExit: pass"
    assert not loaded_by(code).intersection((*FORBIDDEN, "numpy", "rich", "safetensors"))


def test_diff_show_and_weights_import_no_framework(pair, tmp_path):
    code = "from harness.cli.main import main\n"
    weights = tmp_path / "w.npz"
    for arguments in (
        ["diff", *map(str, pair)],
        ["show", str(pair[0])],
        ["weights", "init", str(weights), "--set", "hidden_size=4"],
        ["weights", "show", str(weights)],
    ):
        code += f"try: main({arguments!r})\nexcept SystemExit as e: assert e.code < 2\n"
    assert not loaded_by(code).intersection(FORBIDDEN)


def test_python_dash_m_harness_is_the_command():
    done = subprocess.run(
        [sys.executable, "-m", "harness", "--help"], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("Usage: harness")
