"""The kinds that the API serves, as a table: discovery, routes, tables, OpenAPI and validation derive from
these rows.

A new kind is a new row here, its fields in ``schema/`` (if not there yet), its columns in ``columns.py`` and,
where it has rules of its own, entries in the tables of ``defaults.py`` and ``validation.py``.
"""

from collections.abc import Iterator, Mapping
from typing import Final

from attrs import field, frozen

from .errors import Subject

READ: Final = ("get", "list", "watch")
WRITE: Final = ("create", "delete", "deletecollection", "patch", "update")


@frozen
class Subresource:
    """``pods/log``, ``deployments/scale`` …: the kind it speaks (with its group and version) and its
    verbs."""

    name: str
    kind: str
    verbs: tuple[str, ...]
    group: str = ""
    version: str = ""


@frozen
class Kind:
    """One served kind.

    ``verbs`` are the discovery verbs; ``columns_of`` and ``schema`` name rows of the column and field tables.
    Instances are hashable and may be dictionary keys.
    """

    group: str
    version: str
    kind: str
    plural: str
    singular: str
    namespaced: bool
    verbs: tuple[str, ...]
    short_names: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()
    subresources: tuple[Subresource, ...] = ()
    schema: str = ""

    @property
    def api_version(self) -> str:
        """``v1`` or ``apps/v1``."""
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def list_kind(self) -> str:
        """``PodList`` …"""
        return f"{self.kind}List"

    def subresource(self, name: str) -> Subresource | None:
        """The subresource of that name, if there is one."""
        return next((sub for sub in self.subresources if sub.name == name), None)

    def subject(self, name: str = "") -> Subject:
        """For errors about an object of this kind, which speak of its plural."""
        return Subject(self.group, self.plural, name)

    def kind_subject(self, name: str = "") -> Subject:
        """For ``Invalid`` errors, which speak of the kind."""
        return Subject(self.group, self.kind, name)


DEPLOYMENT: Final = Kind(
    group="apps",
    version="v1",
    kind="Deployment",
    plural="deployments",
    singular="deployment",
    namespaced=True,
    verbs=READ + WRITE,
    short_names=("deploy",),
    categories=("all",),
    subresources=(
        Subresource("scale", "Scale", ("get", "patch", "update"), "autoscaling", "v1"),
        Subresource("status", "Deployment", ("get",), "apps", "v1"),
    ),
    schema="apps.Deployment",
)
REPLICA_SET: Final = Kind(
    group="apps",
    version="v1",
    kind="ReplicaSet",
    plural="replicasets",
    singular="replicaset",
    namespaced=True,
    verbs=READ,
    short_names=("rs",),
    categories=("all",),
    subresources=(Subresource("status", "ReplicaSet", ("get",), "apps", "v1"),),
    schema="apps.ReplicaSet",
)
STATEFUL_SET: Final = Kind(
    group="apps",
    version="v1",
    kind="StatefulSet",
    plural="statefulsets",
    singular="statefulset",
    namespaced=True,
    verbs=READ + WRITE,
    short_names=("sts",),
    categories=("all",),
    subresources=(
        Subresource("scale", "Scale", ("get", "patch", "update"), "autoscaling", "v1"),
        Subresource("status", "StatefulSet", ("get",), "apps", "v1"),
    ),
    schema="apps.StatefulSet",
)
POD: Final = Kind(
    group="",
    version="v1",
    kind="Pod",
    plural="pods",
    singular="pod",
    namespaced=True,
    verbs=READ + WRITE,
    short_names=("po",),
    categories=("all",),
    subresources=(
        Subresource("attach", "PodAttachOptions", ("create", "get"), "", "v1"),
        Subresource("exec", "PodExecOptions", ("create", "get"), "", "v1"),
        Subresource("log", "Pod", ("get",), "", "v1"),
        Subresource("portforward", "PodPortForwardOptions", ("create", "get"), "", "v1"),
        Subresource("status", "Pod", ("get",), "", "v1"),
    ),
    schema="core.Pod",
)
NODE: Final = Kind(
    group="",
    version="v1",
    kind="Node",
    plural="nodes",
    singular="node",
    namespaced=False,
    verbs=READ,
    short_names=("no",),
    subresources=(Subresource("status", "Node", ("get",), "", "v1"),),
    schema="core.Node",
)
NAMESPACE: Final = Kind(
    group="",
    version="v1",
    kind="Namespace",
    plural="namespaces",
    singular="namespace",
    namespaced=False,
    verbs=("create", "delete", "get", "list", "patch", "update", "watch"),
    short_names=("ns",),
    subresources=(Subresource("status", "Namespace", ("get",), "", "v1"),),
    schema="core.Namespace",
)
EVENT: Final = Kind(
    group="",
    version="v1",
    kind="Event",
    plural="events",
    singular="event",
    namespaced=True,
    verbs=READ,
    short_names=("ev",),
    schema="core.Event",
)

CONFIG_MAP: Final = Kind(
    group="",
    version="v1",
    kind="ConfigMap",
    plural="configmaps",
    singular="configmap",
    namespaced=True,
    verbs=READ + WRITE,
    short_names=("cm",),
    schema="core.ConfigMap",
)
SECRET: Final = Kind(
    group="",
    version="v1",
    kind="Secret",
    plural="secrets",
    singular="secret",
    namespaced=True,
    verbs=READ + WRITE,
    schema="core.Secret",
)
SERVICE: Final = Kind(
    group="",
    version="v1",
    kind="Service",
    plural="services",
    singular="service",
    namespaced=True,
    verbs=READ + WRITE,
    short_names=("svc",),
    categories=("all",),
    subresources=(Subresource("status", "Service", ("get",), "", "v1"),),
    schema="core.Service",
)
ENDPOINTS: Final = Kind(
    group="",
    version="v1",
    kind="Endpoints",
    plural="endpoints",
    singular="endpoints",
    namespaced=True,
    verbs=READ,
    short_names=("ep",),
    schema="core.Endpoints",
)
ENDPOINT_SLICE: Final = Kind(
    group="discovery.k8s.io",
    version="v1",
    kind="EndpointSlice",
    plural="endpointslices",
    singular="endpointslice",
    namespaced=True,
    verbs=READ,
    schema="discovery.EndpointSlice",
)
SERVICE_ACCOUNT: Final = Kind(
    group="",
    version="v1",
    kind="ServiceAccount",
    plural="serviceaccounts",
    singular="serviceaccount",
    namespaced=True,
    verbs=READ + WRITE,
    short_names=("sa",),
    schema="core.ServiceAccount",
)

#: Everything served, in the order in which ``kubectl api-resources`` and ``kubectl get all`` show it.
KINDS: Final[tuple[Kind, ...]] = (
    CONFIG_MAP,
    ENDPOINTS,
    EVENT,
    NAMESPACE,
    NODE,
    POD,
    SECRET,
    SERVICE,
    SERVICE_ACCOUNT,
    DEPLOYMENT,
    REPLICA_SET,
    STATEFUL_SET,
    ENDPOINT_SLICE,
)


@frozen
class KindTable:
    """A set of kinds with the look-ups that routing and discovery need."""

    kinds: tuple[Kind, ...] = KINDS
    _by_plural: Mapping[tuple[str, str, str], Kind] = field(init=False, eq=False, repr=False)

    @_by_plural.default
    def _index(self) -> Mapping[tuple[str, str, str], Kind]:
        return {(kind.group, kind.version, kind.plural): kind for kind in self.kinds}

    def find(self, group: str, version: str, plural: str) -> Kind | None:
        """The kind that a URL names, or None."""
        return self._by_plural.get((group, version, plural))

    def group_versions(self) -> Iterator[tuple[str, str]]:
        """Each served (group, version) once; the core group's name is empty and comes first."""
        yield from sorted({(kind.group, kind.version) for kind in self.kinds})

    def of(self, group: str, version: str) -> tuple[Kind, ...]:
        """The kinds of one group and version, by plural."""
        found = [kind for kind in self.kinds if (kind.group, kind.version) == (group, version)]
        return tuple(sorted(found, key=lambda kind: kind.plural))
