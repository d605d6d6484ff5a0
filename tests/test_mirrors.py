"""The twins mirror each other, and are written from scratch: read from their source alone."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TWINS = ("pt_impl", "tf_impl")
FILES = sorted(path.name for path in (ROOT / "pt_impl").glob("*.py"))
CORE = {"harness.spec", "harness.trace", "harness.randomness", "harness.corpus", "harness.weights"}
CORE |= {"harness.errors"}


def tree(twin, file):
    return ast.parse((ROOT / twin / file).read_text("utf-8"))


def signatures(twin, file):
    return [
        (node.name, ast.unparse(node.args))
        for node in tree(twin, file).body
        if isinstance(node, ast.FunctionDef)
    ]


def documentation(twin, file):
    """Docstrings by function; the module's own under its file, the twins' names left out of it."""
    nodes = [node for node in tree(twin, file).body if isinstance(node, ast.FunctionDef)]
    return {node.name: ast.get_docstring(node) for node in nodes}


def imports(twin, file):
    found = set()
    for node in ast.walk(tree(twin, file)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= names if node.module == "harness" else {node.module}
    return found


def test_both_twins_have_the_same_files():
    assert sorted(path.name for path in (ROOT / "tf_impl").glob("*.py")) == FILES
    assert {"cells.py", "model.py", "losses.py", "optim.py", "train.py"} <= set(FILES)


@pytest.mark.parametrize("file", FILES)
def test_both_twins_have_the_same_functions_with_the_same_arguments_in_the_same_order(file):
    assert signatures("pt_impl", file) == signatures("tf_impl", file)


@pytest.mark.parametrize("file", FILES)
def test_both_twins_say_the_same_of_the_same_function(file):
    assert documentation("pt_impl", file) == documentation("tf_impl", file)


@pytest.mark.parametrize("twin", TWINS)
@pytest.mark.parametrize("file", FILES)
def test_a_twin_imports_its_framework_itself_and_the_core_it_may_use(twin, file):
    framework = {"pt_impl": "torch", "tf_impl": "tensorflow"}[twin]
    allowed = CORE | {framework, "json", "sys"}
    for name in imports(twin, file):
        assert name in allowed or name.startswith(f"{twin}."), f"{twin}/{file} imports {name}"


@pytest.mark.parametrize("twin", TWINS)
@pytest.mark.parametrize("file", FILES)
def test_a_twin_uses_no_stock_layer_loss_clipping_or_optimizer(twin, file):
    text = (ROOT / twin / file).read_text("utf-8")
    for stock in ("torch.nn", "torch.optim", "tf.keras", "tf.nn", "keras", "clip_by_global_norm"):
        assert stock not in text, f"{twin}/{file} uses {stock}"


def test_the_core_imports_no_framework_and_no_twin():
    forbidden = {"torch", "tensorflow", "jax", "keras", "pt_impl", "tf_impl", "np_impl"}
    files = [p.relative_to(ROOT) for p in (ROOT / "harness").rglob("*.py")]
    assert len(files) > 10
    for file in files:
        if "capture" not in file.parts:
            for name in imports(str(file.parent), file.name):
                assert name.split(".")[0] not in forbidden, f"{file} imports {name}"
