"""Every cause is found where it is planted, on either side, in both precisions, and only there."""

import pytest
from causes_fixtures import planted
from causes_plants import PLANTS

from harness.explain.causes import explain

# The dtypes take turns, from plant to plant and from side to side; all of them are slow.
RUNS = [
    pytest.param(
        plant,
        side,
        dtype,
        id=f"{plant.cause}-{plant.name}-{side}-{dtype}",
        marks=[] if (i + j) % len(plant.dtypes) == k else pytest.mark.slow,
    )
    for i, plant in enumerate(PLANTS)
    for j, side in enumerate("ab")
    for k, dtype in enumerate(plant.dtypes)
]


@pytest.mark.parametrize(("plant", "side", "dtype"), RUNS)
def test_a_planted_fault_is_found_and_nothing_else_is_certain(plant, side, dtype):
    case = planted(plant.settings, plant.faults, side, dtype)
    assert case is not None
    found = explain(case)
    names = [cause.name for cause in found[:3]]
    assert plant.cause in names, (case.step, case.tensor, found)
    cause = found[names.index(plant.cause)]
    assert plant.words in cause.sentence
    strangers = {c.name for c in found if c.sure == "certain"} - {plant.cause, *plant.also}
    assert not strangers, (case.tensor, found)
