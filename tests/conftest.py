"""For every test: hypothesis profiles, and what a skipped test means.

``HYPOTHESIS_PROFILE=ci`` looks harder than the everyday ``dev``. With ``HAMI_FAIL_ON_SKIP`` a skip
is a failure, unless it names hardware that the machine lacks (a reason that starts with "needs a
real"): what is not run proves nothing.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Generator, Iterator

import pytest
import structlog
from hypothesis import HealthCheck, settings

from hami import logs

settings.register_profile(
    "dev",
    max_examples=50,
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile("ci", settings.get_profile("dev"), max_examples=300)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "dev"))

HARDWARE = "needs a real"


@pytest.fixture(autouse=True)
def logs_as_before() -> Iterator[None]:
    """Logs go on as they did, whatever a test sets up: others look at what is logged."""
    before, root = structlog.get_config(), logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    if structlog.get_config() != before:
        structlog.configure(**before)
        logs.renew()
        root.handlers[:] = handlers
        root.setLevel(level)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.skipped and os.environ.get("HAMI_FAIL_ON_SKIP") and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        if not reason.removeprefix("Skipped: ").startswith(HARDWARE):
            report.outcome = "failed"
            report.longrepr = f"{item.nodeid} was skipped, which counts as missing here: {reason}"
    return report
