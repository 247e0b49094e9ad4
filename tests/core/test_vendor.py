"""The vendor table and NVIDIA's row of it."""

from __future__ import annotations

import pytest

from hami.core.vendor import ResourceNames, table
from hami.core.vendors.nvidia import NVIDIA
from tests.support.builders import OTHER


def test_rows_are_found_by_name_in_the_given_order() -> None:
    vendors = table([OTHER, NVIDIA])

    assert list(vendors) == ["OTHER", "NVIDIA"]
    assert vendors[NVIDIA.name] is NVIDIA


def test_a_table_cannot_be_changed() -> None:
    with pytest.raises(TypeError):
        table([NVIDIA])[OTHER.name] = OTHER  # type: ignore[index] # that is the promise


def test_resource_names_that_are_not_offered_are_left_out() -> None:
    assert ResourceNames(count="a", cores="c").all() == ("a", "c")


def test_nvidias_names_are_those_users_write() -> None:
    assert NVIDIA.resources.all() == (
        "nvidia.com/gpu",
        "nvidia.com/gpumem",
        "nvidia.com/gpumem-percentage",
        "nvidia.com/gpucores",
        "nvidia.com/priority",
    )
    assert NVIDIA.register_key == "hami.io/node-nvidia-register"
    assert NVIDIA.handshake_key == "hami.io/node-handshake"
    assert NVIDIA.to_allocate_key == "hami.io/vgpu-devices-to-allocate"
    assert NVIDIA.allocated_key == "hami.io/vgpu-devices-allocated"
