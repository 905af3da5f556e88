"""The accounting protocol (docs/protocol.py): its invariants hold, every rule is necessary, the code uses its ranks."""

import runpy

import pytest

from local.places import ROOT
from shared.domain.calls import State

SPECIFICATION = runpy.run_path(str(ROOT / "docs/protocol.py"))


def test_protocol_invariants_hold_with_crashes_and_stalls() -> None:
    """`python3 docs/protocol.py` adds one further fault (budget=1) and takes longer."""
    seen, problem, _ = SPECIFICATION["explore"](requests=2, budget=0, broken="")

    assert problem is None
    assert seen > 170_000


@pytest.mark.parametrize("rule", SPECIFICATION["BREAKS"])
def test_removing_a_rule_violates_a_protocol_invariant(rule: str) -> None:
    _, problem, trace = SPECIFICATION["explore"](requests=2, budget=1, broken=rule)

    assert problem
    assert trace


def test_call_states_have_the_ranks_of_the_protocol() -> None:
    assert {state.value: state.rank for state in State} == SPECIFICATION["RANK"]
