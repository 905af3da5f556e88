"""The specification of how money survives crashes holds, each of its rules is needed, and the code has its ranks."""

import runpy

import pytest

from local.places import ROOT
from shared.domain.calls import State

SPECIFICATION = runpy.run_path(str(ROOT / "docs/protocol.py"))


def test_every_invariant_holds() -> None:
    """With crashes and stalls at every step; `python3 docs/protocol.py` adds one more misfortune, and takes longer."""
    seen, problem, _ = SPECIFICATION["explore"](posts=2, budget=0, broken="")

    assert problem is None
    assert seen > 90_000


@pytest.mark.parametrize("rule", SPECIFICATION["BREAKS"])
def test_without_a_rule_one_breaks(rule: str) -> None:
    _, problem, trace = SPECIFICATION["explore"](posts=2, budget=1, broken=rule)

    assert problem
    assert trace


def test_the_code_ranks_a_calls_states_alike() -> None:
    assert {state.value: state.rank for state in State} == SPECIFICATION["RANK"]
