"""docs/scale.md: its tables are what benchmarks/scale.py prints, and the simulation predicts what it has measured."""

import re

import pytest

from benchmarks import scale
from local.places import ROOT

DOCUMENT = (ROOT / "docs" / "scale.md").read_text()
LEVELS = list(scale.LEVELS)


def test_tables_are_those_of_the_benchmark() -> None:
    assert scale.bounds_table(scale.Plan(), scale.COMPETING, LEVELS) in DOCUMENT
    assert scale.takes_table(scale.Plan(), scale.COMPETING, LEVELS) in DOCUMENT


@pytest.mark.parametrize("point", scale.MEASURED, ids=lambda point: f"{point.instances}-{point.pause}")
def test_measured_points_are_those_of_the_document(point: scale.Point) -> None:
    load = f"calls of {point.pause} s" if point.pause else "as fast as it goes"
    row = re.search(rf"\| {point.instances} \| {load} \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \| 0 \|", DOCUMENT)
    assert row
    assert [float(cell) for cell in row.groups()] == [point.writes, point.conflicts, point.reads]
    processes = f"{point.instances} process{'es' if point.instances > 1 else ''}"
    if point.pause == 0:
        assert re.search(rf"measured with {processes}\b.* {point.rate} \|", DOCUMENT)
    else:
        assert f"{point.rate} " in re.sub(r"\s+", " ", DOCUMENT.split("Opening and settling together")[1])


def test_simulation_predicts_what_eight_competing_instances_do() -> None:
    point = scale.MEASURED[-1]
    predicted = scale.predict(point, seconds=3, runs=1)
    for name in scale.FIGURES:
        assert not scale.differs(getattr(predicted, name), getattr(point, name)), name


def test_conflicts_depend_on_the_number_of_instances() -> None:
    alone, eight = (scale.predict(point, seconds=1, runs=1) for point in (scale.MEASURED[0], scale.MEASURED[2]))
    assert (alone.conflicts, alone.writes) == (0, 0.25)  # the eight calls of the instance share each transaction
    assert eight.conflicts > 0.05


def test_what_is_off_by_more_than_the_factor_is_noticed() -> None:
    assert scale.differs(0.4, 0.86)
    assert scale.differs(300, 147)
    assert not scale.differs(0.6, 0.86)
    assert not scale.differs(0.0, 0.05)  # next to nothing


def test_without_limits_the_bounds_of_limits_are_gone() -> None:
    names = {row.name.split(":")[0] for row in scale.bounds(scale.Plan(limited=0), scale.COMPETING)}
    assert names == {"model", "without limits", "instances", "storage", "summary", "index"}


def test_a_larger_capacity_moves_what_binds_first() -> None:
    default, larger = (scale.bounds(scale.Plan(capacity=each), scale.COMPETING)[0] for each in (20, 1_000_000))
    assert default.name == "model: capacity 20, tokens a minute"
    assert default.carries == pytest.approx(20_000 / (60 * 2_300))
    assert larger.name == "model: quota of tier 1, tokens a minute"
