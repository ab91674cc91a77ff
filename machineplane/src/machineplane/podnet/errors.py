"""What can go wrong with the pods' network: each says what happened, to what, and what to do."""


class PodNetworkError(Exception):
    """The root of this package's errors."""


class SubnetExhausted(PodNetworkError):
    """Every address of the pod subnet is in use; nothing was changed."""


class PortsExhausted(PodNetworkError):
    """Every port of the range is in use; nothing was changed."""


class BridgeConflict(PodNetworkError):
    """The bridge's name is taken by something that is not ours, or by pods of another subnet."""


class PodGone(PodNetworkError):
    """The pod's network namespace is not there: its infra container has ended."""


class LinkFailed(PodNetworkError):
    """The kernel refused a link, an address or a route."""
