from __future__ import annotations

from collections.abc import Iterator

import pytest

from hami.sandbox import spec
from tests.support.sandbox import Reached, background


@pytest.fixture(scope="session")
def shared() -> Iterator[Reached]:
    """One sandbox for all tests that only add and remove pods: two nodes of four A100s."""
    with background(spec.uniform(nodes=2, gpus=4, model="A100-80GB")) as reached:
        yield reached
