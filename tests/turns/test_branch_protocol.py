"""Branches (docs/branch_protocol.py): one request is paid for once, and every rule is necessary."""

import runpy

import pytest

from local.places import ROOT

SPECIFICATION = runpy.run_path(str(ROOT / "docs/branch_protocol.py"))
LONG = ("pointer", "branch-record", "mark")


@pytest.mark.parametrize("requests", [2, pytest.param(3, marks=pytest.mark.acceptance)])
def test_one_request_is_paid_for_once_and_no_branch_is_lost(requests: int) -> None:
    states, problem, trace = SPECIFICATION["explore"](requests, "")

    assert not problem, trace
    assert states > 3_000


@pytest.mark.parametrize(
    "rule",
    [pytest.param(rule, marks=pytest.mark.acceptance if rule in LONG else ()) for rule in SPECIFICATION["BREAKS"]],
)
def test_removing_a_rule_violates_an_invariant_of_branches(rule: str) -> None:
    _, problem, trace = SPECIFICATION["explore"](3, rule)

    assert problem
    assert trace
