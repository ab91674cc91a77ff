"""What the API says about itself: version, groups, resources; the legacy way and aggregated (v2, v2beta1)."""

import platform
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from attrs import frozen

from .kinds import Kind, KindTable, Subresource

Document = dict[str, Any]

#: The Kubernetes release whose API we follow; clients compare it with their own (one minor of skew is
#: supported).
MAJOR: Final = "1"
MINOR: Final = "32"

AGGREGATED: Final = ("v2", "v2beta1")


@frozen
class Review:
    """A review resource that is only ever created: ``selfsubjectaccessreviews`` and its like."""

    group: str
    version: str
    kind: str
    plural: str


REVIEWS: Final = (
    Review("authentication.k8s.io", "v1", "SelfSubjectReview", "selfsubjectreviews"),
    Review("authorization.k8s.io", "v1", "SelfSubjectAccessReview", "selfsubjectaccessreviews"),
    Review("authorization.k8s.io", "v1", "SelfSubjectRulesReview", "selfsubjectrulesreviews"),
)


def version_info(release: str) -> Document:
    """``/version``. ``release`` is Magik's own version; it shows in gitVersion as build metadata."""
    return {
        "major": MAJOR,
        "minor": MINOR,
        "gitVersion": f"v{MAJOR}.{MINOR}.0+magik.{release}",
        "gitCommit": "",
        "gitTreeState": "clean",
        "buildDate": "1970-01-01T00:00:00Z",
        "goVersion": f"python{platform.python_version()}",
        "compiler": platform.python_implementation(),
        "platform": f"linux/{_ARCHITECTURES.get(platform.machine(), platform.machine())}",
    }


_ARCHITECTURES: Final[Mapping[str, str]] = {"x86_64": "amd64", "aarch64": "arm64"}


@frozen
class Discovery:
    """Discovery documents for a set of kinds and the reviews."""

    kinds: KindTable

    def groups(self) -> tuple[tuple[str, tuple[str, ...]], ...]:
        """Each named group with its versions, the preferred one first."""
        pairs = {gv for gv in self.kinds.group_versions() if gv[0]}
        pairs |= {(review.group, review.version) for review in REVIEWS}
        names = sorted({group for group, _ in pairs})
        return tuple(
            (name, tuple(sorted((v for g, v in pairs if g == name), reverse=True))) for name in names
        )

    def api_versions(self) -> Document:
        """``/api``."""
        return {"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": []}

    def api_group_list(self) -> Document:
        """``/apis``."""
        groups = [_group(name, versions) for name, versions in self.groups()]
        return {"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}

    def api_group(self, group: str) -> Document | None:
        """``/apis/<group>``."""
        versions = dict(self.groups()).get(group)
        return {"kind": "APIGroup", "apiVersion": "v1"} | _group(group, versions) if versions else None

    def resources(self, group: str, version: str) -> Document | None:
        """``/api/v1`` and ``/apis/<group>/<version>``, or None if there is no such group and version."""
        listed = [row for kind in self.kinds.of(group, version) for row in _legacy_rows(kind)]
        listed += [
            _review_row(review) for review in REVIEWS if (review.group, review.version) == (group, version)
        ]
        if not listed:
            return None
        return {
            "kind": "APIResourceList",
            "apiVersion": "v1",
            "groupVersion": f"{group}/{version}" if group else version,
            "resources": listed,
        }

    def aggregated(self, form: str, *, core: bool) -> Document:
        """``/api`` (``core``) or ``/apis`` as one APIGroupDiscoveryList of version ``form`` (v2 or
        v2beta1)."""
        groups: Iterable[tuple[str, Sequence[str]]] = (("", ("v1",)),) if core else self.groups()
        return {
            "kind": "APIGroupDiscoveryList",
            "apiVersion": f"apidiscovery.k8s.io/{form}",
            "metadata": {},
            "items": [self._aggregated_group(group, versions) for group, versions in groups],
        }

    def _aggregated_group(self, group: str, versions: Sequence[str]) -> Document:
        meta = {"name": group} if group else {}
        shown = [
            {"version": version, "freshness": "Current", "resources": self._aggregated_rows(group, version)}
            for version in versions
        ]
        return {"metadata": meta | {"creationTimestamp": None}, "versions": shown}

    def _aggregated_rows(self, group: str, version: str) -> list[Document]:
        rows = [_aggregated_row(kind) for kind in self.kinds.of(group, version)]
        for review in REVIEWS:
            if (review.group, review.version) == (group, version):
                rows.append(
                    {
                        "resource": review.plural,
                        "responseKind": {
                            "group": review.group,
                            "version": review.version,
                            "kind": review.kind,
                        },
                        "scope": "Cluster",
                        "singularResource": review.kind.lower(),
                        "verbs": ["create"],
                    }
                )
        return rows


def aggregated_form(accept: str) -> str | None:
    """The aggregated discovery version that an ``Accept`` header asks for and we have, or None for legacy."""
    for choice in accept.split(","):
        parts = {part.strip() for part in choice.split(";")}
        if {"g=apidiscovery.k8s.io", "as=APIGroupDiscoveryList"} <= parts:
            for form in AGGREGATED:
                if f"v={form}" in parts:
                    return form
    return None


def aggregated_media_type(form: str) -> str:
    """The exact Content-Type by which clients know the aggregated form."""
    return f"application/json;g=apidiscovery.k8s.io;v={form};as=APIGroupDiscoveryList"


def _group(name: str, versions: Sequence[str]) -> Document:
    shown = [{"groupVersion": f"{name}/{version}", "version": version} for version in versions]
    return {"name": name, "versions": shown, "preferredVersion": shown[0]}


def _legacy_rows(kind: Kind) -> list[Document]:
    row: Document = {
        "name": kind.plural,
        "singularName": kind.singular,
        "namespaced": kind.namespaced,
        "kind": kind.kind,
        "verbs": sorted(kind.verbs),
    }
    if kind.short_names:
        row["shortNames"] = list(kind.short_names)
    if kind.categories:
        row["categories"] = list(kind.categories)
    return [row, *(_legacy_subresource(kind, sub) for sub in kind.subresources)]


def _legacy_subresource(kind: Kind, sub: Subresource) -> Document:
    row: Document = {
        "name": f"{kind.plural}/{sub.name}",
        "singularName": "",
        "namespaced": kind.namespaced,
        "kind": sub.kind,
        "verbs": list(sub.verbs),
    }
    if (sub.group, sub.version) != (kind.group, kind.version):
        row |= {"group": sub.group, "version": sub.version}
    return row


def _review_row(review: Review) -> Document:
    return {
        "name": review.plural,
        "singularName": review.kind.lower(),
        "namespaced": False,
        "kind": review.kind,
        "verbs": ["create"],
    }


def _aggregated_row(kind: Kind) -> Document:
    row: Document = {
        "resource": kind.plural,
        "responseKind": {"group": kind.group, "version": kind.version, "kind": kind.kind},
        "scope": "Namespaced" if kind.namespaced else "Cluster",
        "singularResource": kind.singular,
        "verbs": sorted(kind.verbs),
        "subresources": [
            {
                "subresource": sub.name,
                "responseKind": {"group": sub.group, "version": sub.version, "kind": sub.kind},
                "verbs": list(sub.verbs),
            }
            for sub in kind.subresources
        ],
    }
    if kind.short_names:
        row["shortNames"] = list(kind.short_names)
    if kind.categories:
        row["categories"] = list(kind.categories)
    return row
