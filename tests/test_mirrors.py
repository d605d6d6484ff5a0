"""The twins mirror each other, and are written from scratch: read from their source alone."""

import ast
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TWINS = ("pt_impl", "tf_impl", "np_impl")
FRAMEWORKS = {"pt_impl": "torch", "tf_impl": "tensorflow", "np_impl": "numpy"}
FILES = sorted(path.name for path in (ROOT / "pt_impl").glob("*.py"))
FAULTS = {file for file in FILES if file.startswith("faults_")}
# NumPy's side is the graph of the model, run by its ops: of the twins it mirrors what moves bytes.
MOVES = {"__init__.py", "__main__.py", "backend.py", "faults.py"}
PLACES = [(twin, file) for twin in TWINS for file in FILES if twin != "np_impl" or file in MOVES]
MIRRORS = [(twin, file) for twin, file in PLACES if twin != "pt_impl"]
CORE = {"harness.spec", "harness.trace", "harness.errors", "harness.models.table"}
CORE |= {f"harness.side.{name}" for name in ("loop", "points", "serving", "steps")}

STOCK = ("torch.nn", "torch.optim", "tf.keras", "tf.nn", "keras", "tf.clip_by_global_norm")

# NumPy refuses what it has not (a compiler, autograd) in one place.
ONLY_NUMPY = {"backend.py": {"_missing"}}


@cache
def tree(twin, file):
    return ast.parse((ROOT / twin / file).read_text("utf-8"))


def functions(twin, file):
    """Its functions, and the methods of its public classes, by name in their order."""
    found = {}
    for node in tree(twin, file).body:
        if isinstance(node, ast.FunctionDef):
            found[node.name] = node
        elif isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            methods = [method for method in node.body if isinstance(method, ast.FunctionDef)]
            found |= {f"{node.name}.{method.name}": method for method in methods}
    return found


def mirrored(twin, file):
    """The functions of `twin` and of PyTorch's twin that must be the same."""
    own, other = functions(twin, file), functions("pt_impl", file)
    if twin == "np_impl":
        only = ONLY_NUMPY.get(file, set())
        assert only <= set(own)
        own = {name: node for name, node in own.items() if name not in only}
    return own, other


def signatures(nodes):
    return [(name, ast.unparse(node.args)) for name, node in nodes.items()]


def documentation(twin, nodes):
    """Docstrings by function, the twin's own name left out of them."""
    docs = {name: ast.get_docstring(node) for name, node in nodes.items()}
    return {name: doc and doc.replace(twin, "twin") for name, doc in docs.items()}


def imports(twin, file):
    found = set()
    for node in ast.walk(tree(twin, file)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= names if node.module in ("harness", "harness.side", twin) else {node.module}
    return found


@cache
def used(twin, file):
    """Every dotted name in its code: docstrings may speak of what the code must not use."""
    nodes = [n for n in ast.walk(tree(twin, file)) if isinstance(n, ast.Attribute | ast.Name)]
    return {ast.unparse(node) for node in nodes} | imports(twin, file)


@pytest.mark.parametrize("twin", TWINS)
def test_all_twins_have_the_same_files(twin):
    own = {file for place, file in PLACES if place == twin}
    own |= {"execution.py", "train.py"} if twin == "np_impl" else set()
    assert {path.name for path in (ROOT / twin).glob("*.py")} == own
    mathematics = {"blocks.py", "cells.py", "model.py", "losses.py", "optim.py"}
    assert mathematics <= own or twin == "np_impl"


@pytest.mark.parametrize(("twin", "file"), MIRRORS)
def test_all_twins_have_the_same_functions_with_the_same_arguments_in_the_same_order(twin, file):
    own, other = mirrored(twin, file)
    assert signatures(own) == signatures(other)


@pytest.mark.parametrize(("twin", "file"), MIRRORS)
def test_all_twins_say_the_same_of_the_same_function(twin, file):
    own, other = mirrored(twin, file)
    assert documentation(twin, own) == documentation("pt_impl", other)


@pytest.mark.parametrize("twin", TWINS)
def test_the_backend_of_a_twin_has_the_functions_that_the_core_calls(twin):
    asked = {
        name.removeprefix("Backend."): [argument.arg for argument in node.args.args[1:]]
        for name, node in functions("harness/side", "backend.py").items()
        if not name.endswith("__")
    }
    found = {
        name: [argument.arg for argument in node.args.args]
        for name, node in functions(twin, "backend.py").items()
        if not name.startswith("_")
    }
    assert found == asked


@pytest.mark.parametrize(
    ("twin", "file"),
    [p for p in PLACES if p[1] in ("blocks.py", "cells.py", "losses.py", "model.py")],
)
def test_a_derivative_by_hand_stands_right_after_its_function_and_names_it(twin, file):
    names = list(functions(twin, file))
    derivatives = [name for name in names if name.endswith("_backward")]
    assert derivatives
    for name in derivatives:
        assert names[names.index(name) - 1] + "_backward" == name


@pytest.mark.parametrize(("twin", "file"), PLACES)
def test_a_twin_imports_its_framework_itself_and_the_core_it_may_use(twin, file):
    allowed = CORE | {FRAMEWORKS[twin], "numpy"}  # a trace takes arrays
    for name in imports(twin, file):
        known = name in allowed or name.split(".")[0] in sys.stdlib_module_names
        assert known or name.startswith(f"{twin}."), f"{twin}/{file} imports {name}"


@pytest.mark.parametrize(("twin", "file"), PLACES)
def test_a_twin_uses_no_stock_layer_loss_clipping_or_optimizer(twin, file):
    for name in used(twin, file):
        for stock in STOCK:
            assert not f"{name}.".startswith(f"{stock}."), f"{twin}/{file} uses {name}"


def test_only_the_side_in_numpy_computes_by_the_formulas_of_the_referee():
    for twin, file in PLACES:
        for name in imports(twin, file):
            assert not name.startswith(("harness.models.ops", "harness.models.evaluate")), file
    assert "harness.models.evaluate" in set(imports("np_impl", "execution.py"))


def test_the_core_imports_no_framework_and_no_twin():
    forbidden = {"torch", "tensorflow", "jax", "keras", "pt_impl", "tf_impl", "np_impl"}
    files = [p.relative_to(ROOT) for p in (ROOT / "harness").rglob("*.py")]
    assert len(files) > 10
    for file in files:
        if "capture" not in file.parts:
            for name in imports(str(file.parent), file.name):
                assert name.split(".")[0] not in forbidden, f"{file} imports {name}"


def test_what_moves_bytes_for_every_twin_computes_nothing():
    """What all twins shared could be wrong in all of them, and no diff would see it."""
    harmless = {"np.errstate", "np.generic", "np"}
    for file in ("backend.py", "loop.py", "points.py"):
        found = {name for name in used("harness/side", file) if name.split(".")[0] == "np"}
        assert found <= harmless, f"{file} computes with {found - harmless}"
        nodes = list(ast.walk(tree("harness/side", file)))
        arithmetic = ast.Mult | ast.Div | ast.FloorDiv | ast.Mod | ast.Pow | ast.MatMult | ast.Sub
        assert not [n for n in nodes if isinstance(n, ast.BinOp) and isinstance(n.op, arithmetic)]
        sums = [n for n in nodes if isinstance(n, ast.BinOp) and isinstance(n.op, ast.Add)]
        assert [ast.unparse(n) for n in sums] == ["run.steps + 1"] * (file == "loop.py")
