"""The app on the local host, indexed with the settings of this moment: where people sign in, other routes are anonymous
to the platform, which only a new process finds out otherwise."""

import runpy

from starlette.applications import Starlette

from local.host import application
from local.places import ROOT
from tests.conftest import FUNCTION_KEY
from tests.support.clock import FEBRUARY_29


def indexed() -> Starlette:
    functions = runpy.run_path(str(ROOT / "function_app.py"))
    return application(functions["app"], {"SUMMARY_SCHEDULE": FEBRUARY_29}, "", FUNCTION_KEY)
