"""What can be wrong with the norm of the gradients: which of them it counts, and how."""

from __future__ import annotations

from collections.abc import Iterator

from harness.explain.scene import Edit, Made, Scene, kin_of, put
from harness.models.graph import Graph, Node, is_ref, name_of, node, ref
from harness.models.ops import find


def _rows_of(gradient: Node, graph: Graph | None) -> Node | None:
    """The rows that the gradient of an embedding is the sum of; None for any other."""
    if graph is None or not is_ref(gradient):
        return None
    made = graph.value(name_of(gradient))
    if made is not None:
        return made.inputs[-1] if made.op == "embed_backward" else None
    table = name_of(gradient).replace("grads/", "params/", 1)
    for name, stage in graph.stages.items():  # where no gradient is derived, the lookup tells
        if stage.value.op == "embed" and name_of(stage.value.inputs[0]) == table:
            return ref(name.replace("forward/", "backward/", 1))
    return None


def in_whole_norm(x: Node, scene: Scene) -> Iterator[Edit]:
    """The same of a norm that is one op."""
    squares = node("add", *(node("squares", g) for g in x.inputs))
    inner = scene._replace(base=put(scene, x, node("root", squares)))

    def made(name: str, words: str, new: Node, bits: float) -> Edit:
        return Edit(name, words, put(inner, squares, new), bits)

    yield from in_norm(squares, inner, made)


def in_norm(x: Node, scene: Scene, made: Made) -> Iterator[Edit]:
    """A norm of some tensors alone, of another kind, or of rows before they are added up."""
    given = {i.inputs[0]: i for i in x.inputs if i.op == "squares"}
    for tensor, term in given.items():
        dy = _rows_of(tensor, scene.graph)
        if dy is not None:
            words = f"counts the rows of {name_of(tensor)} before those of one token are added up"
            terms = [node("squares", dy) if i is term else i for i in x.inputs]
            yield made("operand-other", words, node("add", *terms), 5)
    for dims, words in ((1, "vectors (biases)"), (2, "matrices")):
        some = [i for i in x.inputs if len(scene.shapes.get(name_of(i.inputs[0]), ())) != dims]
        if 0 < len(some) < len(x.inputs):
            yield made("operand-missing", f"leaves all {words} out", node("add", *some), 5)
    for kin in find("global_norm").kin:
        yield Edit("formula", kin.does, kin_of(node("global_norm", *given), kin), 6)
