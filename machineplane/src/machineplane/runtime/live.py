"""A pod that has its helper: what the tasks of one pod share."""

from collections.abc import Mapping
from typing import Any

import trio
from attrs import frozen

from machineplane.runtime.book import PodBook
from machineplane.runtime.bundle.contents import files_of
from machineplane.runtime.bundle.env import Surroundings
from machineplane.runtime.bundle.fields import Place, this_machine
from machineplane.runtime.bundle.volumes import Volume, volumes
from machineplane.runtime.private import PrivateFolder
from machineplane.runtime.services import Services
from machineplane.runtime.shim_link import ShimLink


@frozen(kw_only=True)
class LivePod:
    """The pod's book, its helper, its folder in memory, and the API objects that came with it (``records``)."""

    services: Services
    book: PodBook
    link: ShimLink
    private: PrivateFolder
    records: bytes = b""

    @property
    def pod(self) -> Mapping[str, Any]:
        """The v1 Pod."""
        return self.book.status.pod

    def lookup(self, kind: str, name: str) -> Mapping[str, Any] | None:
        """An API object of the pod's namespace."""
        return self.services.lookup(self.records, kind, self.book.status.namespace, name)

    def place(self) -> Place:
        """Where the pod runs."""
        config = self.services.config
        return this_machine(
            node_name=config.node_name,
            host_ip=config.host_ip,
            pod_ip=self.book.status.ip,
            disk=str(config.state_dir),
        )

    def object_volumes(self) -> list[Volume]:
        """The volumes that are made of objects."""
        return [volume for volume in volumes(self.pod["spec"]).values() if volume.of_objects]

    async def write_volume(self, volume: Volume) -> bool:
        """Bring a volume's files up to date; whether anything changed.

        Raises:
            MissingReference, PodSpecError: as :func:`files_of`.
        """
        around = Surroundings(pod=self.pod, place=self.place(), lookup=self.lookup)
        files = files_of(volume.kind, volume.source, around)
        group = (self.pod["spec"].get("securityContext") or {}).get("fsGroup")
        return await trio.to_thread.run_sync(self.private.write_volume, volume.name, files, group)
