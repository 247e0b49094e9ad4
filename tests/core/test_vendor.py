"""The vendor table, the site's settings of it, and where vendors may be named."""

from __future__ import annotations

import ast
import re
from collections.abc import Container, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

import hami
from hami.config import EnflameSettings, HygonSettings, NvidiaSettings, Settings
from hami.core.vendor import Lock, ResourceNames, table
from hami.core.vendors.enflame import ENFLAME_GCU
from hami.core.vendors.hygon import HYGON
from hami.core.vendors.nvidia import NVIDIA
from hami.errors import ConfigError
from hami.site import vendor_table
from tests.support.builders import OTHER

ROWS = (NVIDIA, HYGON, ENFLAME_GCU)
SOURCES = Path(hami.__file__).parent


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


def test_keys_and_defaults_are_those_of_the_vendors_agents() -> None:
    assert HYGON.resources.all() == ("hygon.com/dcunum", "hygon.com/dcumem", "hygon.com/dcucores")
    assert HYGON.register_key == "hami.io/node-dcu-register"
    assert HYGON.handshake_key == "hami.io/node-handshake-dcu"
    assert HYGON.to_allocate_key == "hami.io/dcu-devices-to-allocate"
    assert HYGON.allocated_key == "hami.io/dcu-devices-allocated"
    assert (HYGON.lock, HYGON.default_cores, HYGON.memory_factor) == (Lock.NODE, 100, 1)
    assert ENFLAME_GCU.resources.all() == ("enflame.com/gcu",)
    assert (ENFLAME_GCU.register_key, ENFLAME_GCU.handshake_key) == ("", "")
    assert ENFLAME_GCU.to_allocate_key == "hami.io/enflame-gcu-devices-to-allocate"
    assert ENFLAME_GCU.allocated_key == "hami.io/enflame-gcu-devices-allocated"
    assert ENFLAME_GCU.lock is Lock.NONE


def test_no_two_rows_have_a_name_or_key_in_common() -> None:
    words = [
        word
        for row in ROWS
        for word in (
            row.name, row.register_key, row.handshake_key, row.to_allocate_key,
            row.allocated_key, *row.resources.all(),
        )
        if word
    ]  # fmt: skip

    assert len(words) == len(set(words))


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_every_row_says_where_its_devices_come_from(row: object) -> None:
    assert row in ROWS
    assert isinstance(row, type(NVIDIA))
    assert bool(row.register_key) != bool(row.counted)


# -- the site's table ------------------------------------------------------------------------------


def test_all_vendors_are_there_unless_they_are_left_out() -> None:
    left_out = Settings(
        hygon=HygonSettings(count_name=""), enflame=EnflameSettings(gcu_count_name="")
    )

    assert tuple(vendor_table(Settings()).values()) == ROWS
    assert tuple(vendor_table(left_out)) == (NVIDIA.name,)
    assert tuple(vendor_table(Settings(nvidia=NvidiaSettings(count_name="")))) == ("DCU", "GCU")


def test_settings_give_names_and_factors() -> None:
    settings = Settings(
        hygon=HygonSettings(count_name="a/n", memory_name="a/m", cores_name="", memory_factor=2),
        enflame=EnflameSettings(gcu_count_name="b/n"),
    )

    vendors = vendor_table(settings)

    assert vendors[HYGON.name] == replace(
        HYGON, resources=ResourceNames(count="a/n", memory="a/m"), memory_factor=2
    )
    assert vendors[ENFLAME_GCU.name].resources.all() == ("b/n",)


def test_a_resource_name_has_one_meaning() -> None:
    with pytest.raises(ConfigError, match=r"nvidia\.com/gpu.*NVIDIA and DCU"):
        vendor_table(Settings(hygon=HygonSettings(count_name="nvidia.com/gpu")))


# -- vendors are data ------------------------------------------------------------------------------


ROW_FILES = {f"core/vendors/{name}.py" for name in ("nvidia", "hygon", "enflame")}


def words_of(path: Path) -> Iterator[str]:
    """Every name and every text of a module that does something: no comments, no docstrings."""
    tree = ast.parse(path.read_text())
    told = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        match node:
            case ast.Constant(value=str(text)) if id(node) not in told:
                yield text
            case ast.Name(id=name) | ast.Attribute(attr=name) | ast.alias(name=name):
                yield name
            case ast.ImportFrom(module=str(name)):
                yield name


def named_in(pattern: str, *folders: str, allowed: Container[str] = ()) -> list[str]:
    """The words that match in modules below the folders."""
    return [
        f"{path.relative_to(SOURCES)}: {word}"
        for folder in folders
        for path in sorted((SOURCES / folder).rglob("*.py"))
        if str(path.relative_to(SOURCES)) not in allowed
        for word in words_of(path)
        if re.search(pattern, word, re.IGNORECASE)
    ]


def test_vendors_are_named_in_their_rows_and_settings_alone() -> None:
    """Settings are the site's own and HAMi's; NVIDIA's own agent and driver are its own."""
    compat = {str(path.relative_to(SOURCES)) for path in (SOURCES / "compat").glob("*.py")}
    settings = {"config.py", "site.py"} | compat

    assert named_in("hygon|dcu|enflame|gcu", "", allowed=ROW_FILES | settings) == []
    assert named_in("nvidia", "core", "kube", "controllers", allowed=ROW_FILES) == []
