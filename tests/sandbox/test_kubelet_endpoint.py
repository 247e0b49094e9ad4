"""A plugin's endpoint that was hung up on between being looked up and being called."""

from __future__ import annotations

from pathlib import Path

import pytest

from hami.sandbox.kubelet.plugins import PluginEndpoint, PluginError
from hami.sandbox.kubelet.settings import KubeletSettings


async def test_call_on_a_closed_endpoint_is_the_plugins_refusal(tmp_path: Path) -> None:
    settings = KubeletSettings(node_name="node", root=tmp_path)
    endpoint = PluginEndpoint("example.org/device", tmp_path / "gone.sock", settings)
    await endpoint.close()

    with pytest.raises(PluginError, match="gone"):
        await endpoint.allocate(["one"])
    with pytest.raises(PluginError, match="gone"):
        await endpoint.pre_start(["one"])
