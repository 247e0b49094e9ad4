"""What a container is started with: variables and mounts, in the kubelet's order of precedence.

Pure but for the directories of ``emptyDir`` volumes. Among variables the later wins: the plugins'
come first, then the pod's own (so that a pod can override what a plugin said, as it can in a real
cluster), and last what the node gives every container.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Final

from hami.errors import SandboxError
from hami.sandbox.kubelet.objects import Container, EnvVar, FieldRef, Pod, Volume, VolumeMount
from hami.sandbox.runtime import Mount

PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
ADDRESS: Final = "127.0.0.1"

_REFERENCE: Final = re.compile(r"\$\$|\$\(([-._a-zA-Z0-9]+)\)")
_MAP_FIELD: Final = re.compile(r"metadata\.(labels|annotations)\['([^']{1,317})'\]")


class ConfigError(SandboxError):
    """The container's specification cannot be carried out; it waits until it can."""


def variables(
    pod: Pod, container: Container, *, plugins: Mapping[str, str], node: Mapping[str, str]
) -> dict[str, str]:
    """All variables of the container.

    Raises:
        ConfigError: A value comes from where the sandbox cannot look.
    """
    if container.env_from:
        raise ConfigError("envFrom is not implemented by the sandbox")
    result = {"PATH": PATH, "HOME": "/root", "HOSTNAME": pod.metadata.name[:63], **plugins}
    for variable in container.env or ():
        result[variable.name] = _value(pod, variable, result)
    return result | dict(node)


def expand(text: str, known: Mapping[str, str]) -> str:
    """Replace ``$(NAME)`` by known variables; an unknown one stays, ``$$`` is a dollar."""

    def replace(match: re.Match[str]) -> str:
        if match[0] == "$$":
            return "$"
        return known.get(match[1], match[0])

    return _REFERENCE.sub(replace, text)


def _value(pod: Pod, variable: EnvVar, known: Mapping[str, str]) -> str:
    source = variable.value_from
    if source is None:
        return expand(variable.value, known)
    if source.field_ref is None:
        raise ConfigError(f"variable {variable.name}: the sandbox reads values from fieldRef only")
    return _field(pod, source.field_ref)


def _field(pod: Pod, ref: FieldRef) -> str:
    meta = pod.metadata
    fields = {
        "metadata.name": meta.name,
        "metadata.namespace": meta.namespace,
        "metadata.uid": meta.uid,
        "spec.nodeName": pod.spec.node_name or "",
        "spec.serviceAccountName": pod.spec.service_account_name,
        "status.podIP": ADDRESS,
        "status.podIPs": ADDRESS,
        "status.hostIP": ADDRESS,
        "status.hostIPs": ADDRESS,
    }
    if ref.field_path in fields:
        return fields[ref.field_path]
    match = _MAP_FIELD.fullmatch(ref.field_path)
    if match is None:
        raise ConfigError(f"fieldPath {ref.field_path!r} is not implemented by the sandbox")
    entries = meta.labels if match[1] == "labels" else meta.annotations
    return (entries or {}).get(match[2], "")


def mounts(pod: Pod, container: Container, *, volumes_dir: Path) -> list[Mount]:
    """The container's volume mounts; ``emptyDir`` directories are made below ``volumes_dir``.

    Raises:
        ConfigError: A volume is of a kind that the sandbox has not, or does not exist.
    """
    volumes = {volume.name: volume for volume in pod.spec.volumes or ()}
    return [_mount(mount, volumes, volumes_dir) for mount in container.volume_mounts or ()]


def _mount(mount: VolumeMount, volumes: Mapping[str, Volume], volumes_dir: Path) -> Mount:
    volume = volumes.get(mount.name)
    if volume is None:
        raise ConfigError(f"volume {mount.name!r} of mount {mount.mount_path} does not exist")
    if volume.host_path is not None:
        source = Path(volume.host_path.path)
    elif volume.empty_dir is not None:
        source = volumes_dir / volume.name
        source.mkdir(parents=True, exist_ok=True)
        source.chmod(0o777)
    else:
        raise ConfigError(
            f"volume {mount.name!r}: the sandbox has emptyDir and hostPath volumes only"
        )
    if ".." in PurePosixPath(mount.sub_path).parts:
        raise ConfigError(f"subPath {mount.sub_path!r} must not contain '..'")
    if mount.sub_path:
        source = source / mount.sub_path.lstrip("/")
        source.mkdir(parents=True, exist_ok=True)
    return Mount(host_path=str(source), container_path=mount.mount_path, read_only=mount.read_only)


def command(container: Container, known: Mapping[str, str]) -> tuple[str, ...]:
    """What the container runs; empty where the image would have to say."""
    words: Iterable[str] = (*(container.command or ()), *(container.args or ()))
    if not container.command:
        return ()
    return tuple(expand(word, known) for word in words)
