"""Retention in a deployed app: what the template makes of its two parameters."""

import pytest

from shared.settings import RetentionSettings, Settings
from tests.infra.conftest import Predict
from tests.support import bicep
from tests.support.bicep import Deployment, Refused
from tests.support.setting_names import MINIMAL

pytestmark = pytest.mark.skipif(bicep.compiler() is None, reason=bicep.MISSING)

KEPT = RetentionSettings(session_days=None, ledger_months=None)


def retention(deployment: Deployment) -> RetentionSettings:
    """As the app reads it."""
    names = ("RETENTION_DAYS", "LEDGER_RETENTION_MONTHS")
    return Settings.from_env(MINIMAL | {name: deployment.settings[name] for name in names}).retention


def test_everything_is_kept_by_default(predict: Predict) -> None:
    """Another provisioning of an existing deployment must not erase its conversations."""
    assert retention(predict()) == KEPT
    assert retention(predict(retentionDays=0, ledgerRetentionMonths=0)) == KEPT


def test_days_and_months_reach_the_app(predict: Predict) -> None:
    expected = RetentionSettings(session_days=90, ledger_months=24)
    assert retention(predict(retentionDays=90, ledgerRetentionMonths=24)) == expected


def test_extra_settings_win_over_the_parameters(predict: Predict) -> None:
    deployment = predict(retentionDays=90, extraSettings={"RETENTION_DAYS": "30"})
    assert retention(deployment) == RetentionSettings(session_days=30, ledger_months=None)


def test_one_month_of_ledger_is_refused(predict: Predict) -> None:
    """The app would reject it, with a 500 for every request."""
    with pytest.raises(Refused, match="ledgerRetentionMonths must be 0 or at least 2"):
        predict(ledgerRetentionMonths=1)
