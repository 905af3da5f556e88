"""The accounting protocol (docs/protocol.py): its invariants hold, every rule is necessary, the code uses its ranks."""

import runpy

import pytest

from local.places import ROOT
from shared.domain.calls import State

SPECIFICATION = runpy.run_path(str(ROOT / "docs/protocol.py"))


@pytest.mark.parametrize(
    ("requests", "budget", "states"), [(1, 2, 20_000), pytest.param(2, 0, 170_000, marks=pytest.mark.acceptance)]
)
def test_protocol_invariants_hold_with_crashes_and_stalls(requests: int, budget: int, states: int) -> None:
    """`python3 docs/protocol.py` explores two requests with a further fault, and takes longer."""
    seen, problem, _ = SPECIFICATION["explore"](requests=requests, budget=budget, broken="")

    assert problem is None
    assert seen > states


LONG = {"key"}  # takes as many states as all other rules together


@pytest.mark.parametrize(
    "rule",
    [pytest.param(rule, marks=pytest.mark.acceptance if rule in LONG else ()) for rule in SPECIFICATION["BREAKS"]],
)
def test_removing_a_rule_violates_a_protocol_invariant(rule: str) -> None:
    _, problem, trace = SPECIFICATION["explore"](requests=2, budget=1, broken=rule)

    assert problem
    assert trace


def test_call_states_have_the_ranks_of_the_protocol() -> None:
    assert {state.value: state.rank for state in State} == SPECIFICATION["RANK"]
