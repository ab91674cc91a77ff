"""Volumes of a pod, where they lie on the machine, and how containers mount them."""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from attrs import field, frozen

from machineplane.runtime.bundle.contents import check_source
from machineplane.runtime.bundle.env import expand
from machineplane.runtime.bundle.hostpolicy import HostPolicy
from machineplane.runtime.bundle.quantity import byte_count
from machineplane.runtime.errors import PodSpecError

OBJECT_KINDS = ("configMap", "secret", "projected", "downwardAPI")
_HOST_TYPES = (
    "",
    "DirectoryOrCreate",
    "Directory",
    "FileOrCreate",
    "File",
    "Socket",
    "CharDevice",
    "BlockDevice",
)


@frozen(kw_only=True)
class Volume:
    """One volume: its ``kind`` and source as in the spec; ``size`` in bytes limits an ``emptyDir`` (0: no limit)."""

    name: str
    kind: str
    source: Mapping[str, Any] = field(factory=dict)
    size: int = 0

    @property
    def memory(self) -> bool:
        """Whether it is an ``emptyDir`` in memory."""
        return self.kind == "emptyDir" and self.source.get("medium") == "Memory"

    @property
    def of_objects(self) -> bool:
        """Whether its files are made of API objects, or of what the pod knows of itself."""
        return self.kind in OBJECT_KINDS

    def path(self, pod_dir: Path) -> Path:
        """Where it lies. What is made of objects lies in the pod's private file system in memory."""
        if self.kind == "hostPath":
            return Path(os.path.normpath(self.source["path"]))
        return (
            pod_dir / "private" / "volumes" / self.name
            if self.of_objects
            else pod_dir / "volumes" / self.name
        )


@frozen(kw_only=True)
class Bind:
    """A path that is looked up below ``root`` when the container is made, without ever leaving it.

    ``kind`` is one of hostPath's types ("" takes anything); ``make``: a directory is made where there is none.
    """

    root: str
    path: str
    kind: str = ""
    make: bool = False


def _volume(volume: Mapping[str, Any], where: str) -> Volume:
    name = volume.get("name")
    if not isinstance(name, str) or not name or "/" in name or name in {".", ".."}:
        raise PodSpecError(f"{where}.name {name!r} is not usable")
    kinds = [key for key in volume if key != "name"] or ["emptyDir"]
    kind, source = kinds[0], volume.get(kinds[0]) or {}
    if len(kinds) > 1:
        raise PodSpecError(f"{where}.{kinds[1]}: a volume has one kind only")
    if kind == "emptyDir":
        return _empty_dir(name, source, where)
    if kind == "hostPath":
        _check_host_path(source, f"{where}.hostPath")
    elif kind in OBJECT_KINDS:
        check_source(kind, source, f"{where}.{kind}")
    else:
        raise PodSpecError(f"{where}.{kind}: volumes of this kind are not supported by this version")
    return Volume(name=name, kind=kind, source=source)


def _empty_dir(name: str, source: Mapping[str, Any], where: str) -> Volume:
    medium = source.get("medium") or ""
    if medium not in {"", "Memory"}:
        raise PodSpecError(f"{where}.emptyDir.medium {medium!r} is not supported by this version")
    size = byte_count(source["sizeLimit"], f"{where}.emptyDir.sizeLimit") if "sizeLimit" in source else 0
    return Volume(name=name, kind="emptyDir", source=source, size=size)


def _check_host_path(source: Mapping[str, Any], where: str) -> None:
    path, kind = source.get("path"), source.get("type") or ""
    if not isinstance(path, str) or not path.startswith("/") or ".." in path.split("/"):
        raise PodSpecError(f"{where}.path {path!r} is not an absolute path without '..'")
    if kind not in _HOST_TYPES:
        raise PodSpecError(f"{where}.type {kind!r} is none of {', '.join(_HOST_TYPES[1:])}")


def volumes(spec: Mapping[str, Any]) -> dict[str, Volume]:
    """The pod's volumes by name.

    Raises:
        PodSpecError: one that this version does not do.
    """
    found = [
        _volume(volume, f"spec.volumes[{index}]") for index, volume in enumerate(spec.get("volumes") or [])
    ]
    return {volume.name: volume for volume in found}


def check_volumes(spec: Mapping[str, Any], policy: HostPolicy) -> None:
    """Refuse volumes that this version or this machine does not do, mounts of none, and mount options not done."""
    known = volumes(spec)
    for index, volume in enumerate(known.values()):
        if volume.kind == "hostPath":
            policy.check_path(str(volume.path(Path("/"))), f"spec.volumes[{index}].hostPath.path")
    for key in ("initContainers", "containers"):
        for index, container in enumerate(spec.get(key) or []):
            mounts = (container.get("volumeMounts") if isinstance(container, Mapping) else None) or []
            for number, mount in enumerate(mounts):
                _check_mount(mount, known, f"spec.{key}[{index}].volumeMounts[{number}]")


def _check_mount(mount: Mapping[str, Any], known: Mapping[str, Volume], where: str) -> None:
    if mount.get("name") not in known:
        raise PodSpecError(f"{where}.name: the pod has no volume {mount.get('name')!r}")
    path = str(mount.get("mountPath", ""))
    if not path.startswith("/") or ".." in path.split("/") or path.strip("/") == "":
        raise PodSpecError(f"{where}.mountPath {path!r} is not an absolute path below / without '..'")
    if mount.get("subPath") and mount.get("subPathExpr"):
        raise PodSpecError(f"{where}.subPathExpr excludes subPath")
    check_sub_path(mount.get("subPath") or "", f"{where}.subPath")
    if mount.get("recursiveReadOnly") not in {None, "", "Disabled", "IfPossible"}:
        raise PodSpecError(f"{where}.recursiveReadOnly is not supported by this version")
    if mount.get("mountPropagation") not in {None, "None"}:
        raise PodSpecError(
            f"{where}.mountPropagation {mount['mountPropagation']} is not supported by this version"
        )


def check_sub_path(path: str, where: str) -> None:
    """Refuse a sub-path that names its way out of the volume; links are dealt with when it is mounted."""
    if path.startswith("/") or ".." in path.split("/") or "\0" in path:
        raise PodSpecError(f"{where} {path!r} is not a relative path without '..'")


def _sub_path(mount: Mapping[str, Any], values: Mapping[str, str]) -> str:
    if not mount.get("subPathExpr"):
        return str(mount.get("subPath") or "")
    path = expand(str(mount["subPathExpr"]), values)
    check_sub_path(path, "subPathExpr")
    return path


def mount_bind(
    mount: Mapping[str, Any], volume: Volume, pod_dir: Path, values: Mapping[str, str], policy: HostPolicy
) -> Bind | None:
    """What must be looked up for a mount of a volume; none where the volume as a whole is mounted."""
    sub = _sub_path(mount, values)
    if volume.kind == "hostPath":
        path = str(volume.path(pod_dir))
        root = policy.prefix_of(path)
        kind = str(volume.source.get("type") or "")
        inner = os.path.relpath(path, root)
        return Bind(
            root=root,
            path=os.path.join(inner, sub) if sub else inner,
            kind="" if sub else kind,
            make=bool(sub),
        )
    if not sub:
        return None
    return Bind(root=str(volume.path(pod_dir)), path=sub, make=not volume.of_objects)


def volume_mounts(
    container: Mapping[str, Any],
    pod_dir: Path,
    known: Mapping[str, Volume],
    binds: Mapping[int, Path] | None = None,
) -> list[dict[str, Any]]:
    """The OCI mounts of a container's ``volumeMounts``; ``binds``: by index, where a :class:`Bind` was put."""
    made = []
    for index, mount in enumerate(container.get("volumeMounts") or []):
        volume = known[mount["name"]]
        source = (binds or {}).get(index) or volume.path(pod_dir)
        read_only = mount.get("readOnly") or volume.of_objects
        made.append(
            {
                "destination": os.path.normpath(mount["mountPath"]),
                "type": "bind",
                "source": str(source),
                "options": ["rbind", "rprivate", "ro" if read_only else "rw"],
            }
        )
    return sorted(made, key=_depth)  # a mount inside another's folder comes after it


def _depth(mount: Mapping[str, Any]) -> int:
    return str(mount["destination"]).count("/")


def container_binds(
    container: Mapping[str, Any],
    pod_dir: Path,
    known: Mapping[str, Volume],
    values: Mapping[str, str],
    policy: HostPolicy,
) -> dict[int, Bind]:
    """What must be looked up for a container, by the index of its mount.

    Raises:
        PodSpecError: a path that leaves its volume, or that this machine does not give.
    """
    mounts: Iterable[Mapping[str, Any]] = container.get("volumeMounts") or ()
    found = {
        index: mount_bind(mount, known[mount["name"]], pod_dir, values, policy)
        for index, mount in enumerate(mounts)
    }
    return {index: bind for index, bind in found.items() if bind is not None}
