"""Every cause is found where it is planted, on either side, in both precisions, and only there."""

import pytest
from causes_fixtures import planted_places
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


SURE = ("certain", "likely", "hint", "none")


@pytest.mark.parametrize(("plant", "side", "dtype"), RUNS)
def test_a_planted_fault_is_found_and_nothing_else_is_certain(plant, side, dtype):
    case, others = planted_places(plant.settings, plant.faults, side, dtype)
    assert case is not None
    found = explain(case, others)
    sure = next((cause.sure for cause in found[:3] if plant.says(cause, side)), "none")
    least = plant.narrow if plant.narrow and dtype == "float32" else plant.sure
    assert SURE.index(sure) <= SURE.index(least), (case.step, case.tensor, found)
    strangers = [c for c in found if c.sure == "certain" and not plant.says(c, side)]
    assert not strangers, (case.tensor, found)


def test_few_plants_are_not_found_and_few_are_less_than_certain():
    assert [plant.name for plant in PLANTS if plant.sure == "none"] == ["recurrent too"]
    assert sum(plant.sure != "certain" for plant in PLANTS) <= 7
    assert sum(bool(plant.narrow) for plant in PLANTS) <= 10


def test_one_format_for_another_with_as_many_bits_is_said():
    plant = next(plant for plant in PLANTS if plant.name == "held in tf32")
    (cause,) = explain(*planted_places(plant.settings, plant.faults))
    assert "is rounded to float16" in cause.sentence
    assert "(or to tf32, which has as many bits)" in cause.sentence
