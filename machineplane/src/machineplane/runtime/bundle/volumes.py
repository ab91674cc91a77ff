"""Volumes of a pod: ``emptyDir`` on disk or in memory. Others are refused by name."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from attrs import frozen

from machineplane.runtime.bundle.quantity import byte_count
from machineplane.runtime.errors import PodSpecError

_MOUNT_REFUSED = ("subPath", "subPathExpr", "recursiveReadOnly")


@frozen(kw_only=True)
class Volume:
    """An ``emptyDir``; ``size`` in bytes limits one in memory (0: half of the machine's, the kernel's default)."""

    name: str
    memory: bool
    size: int

    def path(self, pod_dir: Path) -> Path:
        """Where it lies on the machine."""
        return pod_dir / "volumes" / self.name


def _volume(volume: Mapping[str, Any], where: str) -> Volume:
    name = volume.get("name")
    if not isinstance(name, str) or not name or "/" in name or name in {".", ".."}:
        raise PodSpecError(f"{where}.name {name!r} is not usable")
    kinds = [key for key in volume if key != "name"]
    if kinds not in ([], ["emptyDir"]):
        raise PodSpecError(f"{where}: volumes of the kind {kinds[0]} are not supported by this version")
    source = volume.get("emptyDir") or {}
    medium = source.get("medium") or ""
    if medium not in {"", "Memory"}:
        raise PodSpecError(f"{where}.emptyDir.medium {medium!r} is not supported by this version")
    size = byte_count(source["sizeLimit"], f"{where}.emptyDir.sizeLimit") if "sizeLimit" in source else 0
    return Volume(name=name, memory=medium == "Memory", size=size)


def volumes(spec: Mapping[str, Any]) -> dict[str, Volume]:
    """The pod's volumes by name.

    Raises:
        PodSpecError: one that this version does not do.
    """
    found = [
        _volume(volume, f"spec.volumes[{index}]") for index, volume in enumerate(spec.get("volumes") or [])
    ]
    return {volume.name: volume for volume in found}


def check_volumes(spec: Mapping[str, Any]) -> None:
    """Refuse unknown kinds of volume, mounts of volumes that are not there, and mount options not done."""
    known = volumes(spec)
    for key in ("initContainers", "containers"):
        for index, container in enumerate(spec.get(key) or []):
            for mount in (container.get("volumeMounts") if isinstance(container, Mapping) else None) or []:
                _check_mount(mount, known, f"spec.{key}[{index}].volumeMounts")


def _check_mount(mount: Mapping[str, Any], known: Mapping[str, Volume], where: str) -> None:
    if mount.get("name") not in known:
        raise PodSpecError(f"{where}: the pod has no volume {mount.get('name')!r}")
    if not str(mount.get("mountPath", "")).startswith("/"):
        raise PodSpecError(f"{where}.mountPath {mount.get('mountPath')!r} is not absolute")
    for name in _MOUNT_REFUSED:
        if mount.get(name):
            raise PodSpecError(f"{where}.{name} is not supported by this version")
    if mount.get("mountPropagation") not in {None, "None"}:
        raise PodSpecError(
            f"{where}.mountPropagation {mount['mountPropagation']} is not supported by this version"
        )


def volume_mounts(
    container: Mapping[str, Any], pod_dir: Path, known: Mapping[str, Volume]
) -> list[dict[str, Any]]:
    """The OCI mounts of a container's ``volumeMounts``."""
    return [
        {
            "destination": mount["mountPath"],
            "type": "bind",
            "source": str(known[mount["name"]].path(pod_dir)),
            "options": ["rbind", "rprivate", "ro" if mount.get("readOnly") else "rw"],
        }
        for mount in container.get("volumeMounts") or []
    ]
