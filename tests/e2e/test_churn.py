"""Pods come and go while the agent and the kubelet die and return; then everything must agree."""

from __future__ import annotations

import pytest

from tests.support.churn import open_churn

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]


@pytest.mark.parametrize("seed", [20260821])
async def test_nothing_is_left_behind_by_an_afternoon_of_accidents(seed: int) -> None:
    async with open_churn(seed) as churn:
        await churn.stir(seconds=15)
        await churn.settle(seconds=60)
