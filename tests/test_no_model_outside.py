"""Nothing in harness/ outside models/ names a tensor of a particular model: read from its source.

The names are those of the graphs of all rows of the table, with every choice they have. A string
constant (an f-string with * for what is filled in; no docstring) names one where it holds

- a path, in words without spaces, with a part of such a name between its slashes: "forward/h",
  "grads/layer*/w_i", f"layer{k}/b_h", "/w_h". Numbers and patterns of them are one: layer0,
  layer*, layer\\d+;
- or anywhere a part that is no English word, for it has an underscore or a number: "softmax_w",
  "layer1";
- or nothing but a part of more than a letter: "logits", "embedding".

Not counted are the parts that every model has (ROLES: groups, the loss, the norm, the rate, the
tokens), words of a sentence ("vocabulary 10, embedding 7"), and the pattern of a layer's number by
itself ("layer\\d+"), by which any row may name the layers that it repeats.
"""

import ast
import re
from itertools import product
from pathlib import Path

import pytest

from harness.models.spec import ModelSpec
from harness.models.table import ROWS, graph_of
from harness.spec import TrainSpec

ROOT = Path(__file__).parent.parent
ROLES = {"inputs", "mask", "params", "state", "in", "out", "forward", "backward", "grads"}
ROLES |= {"update", "clipped", "global_norm", "learning_rate", "x", "y", "loss"}
NUMBER = re.compile(r"(?<=[A-Za-z])(\d+|\*|\\d\+?|\[\d-\d\]|\[\^/\]\*)")
TESTED = [
    path
    for path in sorted((ROOT / "harness").rglob("*.py"))
    # What records scripts names the functions of frameworks, one of which is "embedding".
    if path.parts[len(ROOT.parts) + 1] not in ("models", "capture")
]


def names():
    """The names of all tensors of all rows."""
    found = set()
    for network, row in ROWS.items():
        fields = {"tied": (False, True), "reset": ("after", "before")}
        choices = [
            [(name, v) for v in values] for name, values in fields.items() if name in row.fields
        ]
        for chosen in product(*choices):
            spec = ModelSpec(5, 3, 3, 2, network=network, **dict(chosen))
            found |= set(graph_of(spec, TrainSpec()).stages)
    return found


def parts():
    """What names are made of, layers numbered #, without what every model has."""
    return {NUMBER.sub("#", part) for name in names() for part in name.split("/")} - ROLES


PARTS = parts()


def named(text):
    """The parts of names of tensors that a string constant holds."""
    found = set()
    for word in re.split(r"[\s'\"`,;:()=]+", text):
        segments = [NUMBER.sub("#", segment) for segment in word.split("/")]
        if len(segments) > 1:
            found |= PARTS & set(segments)
    told = {part for part in PARTS if "_" in part or "#" in part}
    bare = re.findall(r"[A-Za-z_]\w*", re.sub(r"\blayer\\d\+", "", text))
    found |= told & {NUMBER.sub("#", word) for word in bare}
    return found | ({text} & {part for part in PARTS if len(part) > 1})


def strings(tree):
    """Every string constant but docstrings, with its line."""
    left_out = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            left_out.add(node.value)
        elif isinstance(node, ast.JoinedStr):
            left_out |= {x for x in node.values if isinstance(x, ast.Constant)}
            whole = (x.value if isinstance(x, ast.Constant) else "*" for x in node.values)
            yield node.lineno, "".join(whole)
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in left_out:
            yield node.lineno, node.value


def told_of(source):
    """The lines of a source that name a tensor of a model, in words."""
    return [
        f"line {line}: {text!r} names {', '.join(sorted(found))}"
        for line, text in strings(ast.parse(source))
        if (found := named(text))
    ]


def test_nothing_outside_of_models_names_a_tensor_of_a_model():
    found = {str(path.relative_to(ROOT)): told_of(path.read_text("utf-8")) for path in TESTED}
    assert {path: lines for path, lines in found.items() if lines} == {}
    assert len(TESTED) > 80


def test_the_names_are_those_of_every_row():
    assert {"layer#", "embedding", "logits", "gates", "softmax_w", "b_h", "w_i", "h", "c"} <= PARTS
    assert {"r", "z", "n", "a"} <= PARTS  # of a GRU and an RNN
    assert not PARTS & {"forward", "loss", "x", "layer"}


@pytest.mark.parametrize(
    "line",
    [
        "x == 'forward/logits'",
        "x == 'forward/h'",
        "x.endswith('/w_h')",
        "fnmatch(x, 'backward/layer*/c')",
        "re.match(r'forward/layer\\d/gates', x)",
        "weights[f'layer{k}/w_i']",
        "weights[f'{layer}/b_h']",
        "weights['embedding']",
        "weights['softmax_b']",
        "raise Error('give softmax_w, or none')",
        "raise Error(f'{x}: no params/layer0/w_h of {y}')",
        "x == 'layer1'",
        "update = {'grads/embedding': 1}",
    ],
)
def test_a_name_is_seen(line):
    assert len(told_of(f"def f():\n    '''Embeds forward/logits.'''\n    {line}\n")) == 1


@pytest.mark.parametrize(
    "line",
    [
        "x == 'forward/loss'",
        "x.startswith(('grads/', 'state/in/', 'inputs/mask/', 'update/clipped/'))",
        "f'params/{name}'",
        "f'optimizer/{name}/velocity'",
        "x in ('a', 'c', 'h', 'update/global_norm', 'inputs/x')",
        "f'vocabulary {v}, embedding {e}'",
        "re.compile(r'layer\\d+')",
        "'the first layer of 3'",
    ],
)
def test_what_every_model_has_is_no_name(line):
    assert told_of(line) == []
