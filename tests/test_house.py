"""The house: who may import whom, and what must never be imported. Read from the source alone."""

import ast
import configparser
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from harness.runs.processes import ROOT as PROJECT
from harness.runs.processes import TWINS

ROOT = Path(__file__).parent.parent

# The packages and modules of harness/, from the ground up: each may import those of earlier rows,
# and none of its own row or of a later one.
ORDER = (
    ("errors", "callable_module", "kernels"),  # these need nothing of ours
    ("models",),  # what a step computes, as data
    ("spec", "observer"),  # what a run is; who is told of it
    ("trace",),  # the format on disk
    ("data", "compare"),  # weights and texts (hashed and named as traces are); the diff
    ("side",),  # the process of a side: reads data, writes a trace
    ("capture",),  # the same for anybody's own script
    ("align",),  # which tensor of one trace is which of another's
    ("explain", "faults"),  # verdict and causes; the catalogue of faults, which is a table
    ("repro",),  # the stage at which two programs part, as programs of its own
    ("runs",),  # starts sides, compares, has it explained, and knows the faults by name
    ("scoreboard", "bench"),  # make many runs and count
    ("report",),  # shows results: of these and of runs it reads the values alone (VALUES)
    ("testing",),  # what a test asserts of traces: compares, explains and reports
    ("cli", "pytest_plugin"),
    ("__main__", "run"),  # python -m harness, python -m harness.run
)
# The modules with results: what a report may import of packages that do something.
VALUES = {
    "harness.runs": "harness.runs.result",
    "harness.scoreboard": "harness.scoreboard.result",
    "harness.bench": "harness.bench.result",
}
# The public names, of every row, are imported when they are first used.
PUBLIC = "harness"
FOREIGN = {"torch", "tensorflow", "keras", "jax", "flax", "pt_impl", "tf_impl", "np_impl"}
# The modules that record one framework's scripts: imported where the script is of that framework.
ADAPTERS = ("harness.capture.pytorch", "harness.capture.keras", "harness.capture.jax")


def row_of(module):
    """The place in ORDER of a module of harness/."""
    name = module.split(".")[1]
    rows = [i for i, row in enumerate(ORDER) if name in row]
    assert len(rows) == 1, f"{module}: put harness/{name} into ORDER, once"
    return rows[0]


def module_of(path, root):
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def sources(root=ROOT):
    """The syntax tree of every module of harness/, by its name."""
    return {
        module_of(path, root): ast.parse(path.read_text("utf-8"))
        for path in sorted((root / "harness").rglob("*.py"))
    }


def is_type_checking(node):
    return isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")


def statements(node, at_import_only):
    """The statements in a tree; only those that run when the module is imported, if so asked."""
    for child in ast.iter_child_nodes(node):
        if at_import_only and (
            isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            or is_type_checking(child)
        ):
            continue
        yield child
        yield from statements(child, at_import_only)


def imports(module, trees, at_import_only=False):
    """What a module imports, `from package import module` as that module."""
    names = set()
    for node in statements(trees[module], at_import_only):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{module}: from {'.' * node.level}: write the whole name"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                names.add(whole if whole in trees else node.module)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            names |= {a.value for a in node.args[:1] if isinstance(a, ast.Constant)}
    return names


def is_upwards(module, name):
    """Whether a module of harness/ may not import what is called `name`."""
    if name == PUBLIC:
        return True
    ours, package = name.split(".")[0] == "harness", name.split(".")[1:2]
    return ours and package != module.split(".")[1:2] and row_of(name) >= row_of(module)


def upwards(trees):
    """Every import that is not from an earlier row, in words."""
    return [
        f"{module} imports {name}"
        for module in trees
        if module != PUBLIC
        for name in imports(module, trees)
        if is_upwards(module, name)
    ]


def circle(trees):
    """A circle of modules that import each other while they are imported, or None."""
    graph = {
        module: {name for name in imports(module, trees, True) if name in trees} - {module}
        for module in trees
        if module != PUBLIC
    }
    try:
        list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        return error.args[1]
    return None


def test_imports_go_one_way():
    assert upwards(sources()) == []


def test_no_modules_import_each_other_in_a_circle():
    assert circle(sources()) is None


@pytest.mark.parametrize(
    ("module", "line", "wrong"),
    [
        ("harness.trace.extra", "import harness.compare.diff", "harness.compare.diff"),
        ("harness.compare.extra", "from harness import explain", "harness.explain"),
        ("harness.compare.extra", "from harness.data import corpus", "harness.data.corpus"),
        (
            "harness.runs.extra",
            "def f():\n    from harness.cli.main import main",
            "harness.cli.main",
        ),
        ("harness.spec", "if TYPE_CHECKING:\n    from harness.trace import Trace", "harness.trace"),
        ("harness.trace.extra", "import harness", "harness"),
    ],
)
def test_an_import_upwards_or_sideways_is_seen(module, line, wrong):
    trees = {**sources(), module: ast.parse(line)}
    assert upwards(trees) == [f"{module} imports {wrong}"]


def test_a_circle_is_seen_and_one_that_is_closed_in_a_function_is_none():
    a, b = "harness.trace.a", "harness.trace.b"
    trees = {a: ast.parse(f"import {b}"), b: ast.parse(f"from {a} import x")}
    assert set(circle(trees)) == {a, b}
    assert circle({**trees, b: ast.parse(f"def f():\n    import {a}")}) is None


def test_a_package_that_has_no_place_in_the_order_is_told_of():
    with pytest.raises(AssertionError, match="put harness/nonsense into ORDER"):
        upwards({"harness.nonsense.a": ast.parse("import harness.trace"), "harness.trace": None})


def test_every_place_in_the_order_is_one_that_there_is():
    names = {module.split(".")[1] for module in sources() if module != PUBLIC}
    assert {name for row in ORDER for name in row} == names


def test_a_report_reads_values_of_what_runs_and_starts_nothing():
    for module in sources():
        if module.startswith("harness.report."):
            for name in imports(module, sources()):
                package = ".".join(name.split(".")[:2])
                assert name == VALUES.get(package, name), f"{module} imports {name}"


def foreign(trees):
    """Every import of a framework or a twin, in a function or not; of what imports one, too."""
    return [
        f"{module} imports {name}"
        for module in trees
        for name in imports(module, trees)
        if not module.startswith(ADAPTERS)
        if name.split(".")[0] in FOREIGN or name.startswith(ADAPTERS)
    ]


def test_the_core_imports_no_framework_and_no_twin():
    assert foreign(sources()) == []


@pytest.mark.parametrize(
    "line",
    [
        "import torch.nn",
        "def f():\n    from pt_impl.cells import lstm",
        "import_module('jax')",
        "from harness.capture.pytorch import adapter",
    ],
)
def test_a_framework_in_the_core_is_seen(line):
    assert len(foreign({"harness.trace.extra": ast.parse(line)})) == 1


def test_nothing_but_the_core_and_the_twins_is_installed():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    installed = config["options.packages.find"]["include"].split()
    assert set(installed) == {"harness*", *(f"{twin.module}*" for twin in TWINS.values())}
    for folder in ROOT.iterdir():
        if (folder / "__init__.py").exists():
            assert f"{folder.name}*" in installed


def test_a_sides_interpreter_is_given_the_folder_that_the_twins_are_in():
    assert all((PROJECT / twin.module / "__main__.py").exists() for twin in TWINS.values())
    assert PROJECT == ROOT
