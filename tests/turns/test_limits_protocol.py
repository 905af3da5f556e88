"""The limits (docs/limits_protocol.py): no limit is exceeded, every rule is necessary, states rank as in the code."""

import runpy
from itertools import combinations

import pytest

from local.places import ROOT
from shared.domain.calls import State

SPECIFICATION = runpy.run_path(str(ROOT / "docs/limits_protocol.py"))
QUICK = ("one, costs",)
LONG_BREAKS = {"raise-guard", "row-guard"}
LONG = [name for name in (*SPECIFICATION["WORLDS"], *SPECIFICATION["BIG"]) if name not in QUICK]


@pytest.mark.parametrize("world", [*QUICK, *(pytest.param(name, marks=pytest.mark.acceptance) for name in LONG)])
def test_no_limit_is_exceeded(world: str) -> None:
    result = SPECIFICATION["run"](world)

    assert result.problem is None, result.trace
    assert result.states > 30_000


def test_groups_that_land_late_give_nothing_back_twice() -> None:
    one, limit = SPECIFICATION["One"], SPECIFICATION["HIGH"]
    world = one("", ((limit,), (limit,)), minutes=((0, 0),), faults=1, groups=True)

    states, problem, trace = SPECIFICATION["explore"](world)

    assert problem is None, trace
    assert states > 10_000


@pytest.mark.parametrize(
    "rule",
    [
        pytest.param(rule, marks=pytest.mark.acceptance if rule in LONG_BREAKS else ())
        for rule in SPECIFICATION["BREAKS"]
    ],
)
def test_removing_a_rule_violates_an_invariant_of_the_limits(rule: str) -> None:
    world, _ = SPECIFICATION["BREAKS"][rule]

    result = SPECIFICATION["run"](world, rule)

    assert result.problem
    assert result.trace


def test_call_states_rank_as_in_the_code() -> None:
    rank = SPECIFICATION["RANK"]

    assert {state.value for state in State} <= rank.keys()
    for low, high in combinations(sorted(State, key=lambda state: state.rank), 2):
        assert (low.rank < high.rank) == (rank[low] < rank[high])
