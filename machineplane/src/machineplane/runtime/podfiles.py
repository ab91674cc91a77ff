"""The files that a pod brings into its containers: hosts, resolver, host name, and folders for its volumes."""

import contextlib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from machineplane.runtime.bundle.config import CLUSTER_DOMAIN, NOBODY, fqdn, hostname
from machineplane.runtime.bundle.volumes import volumes

SHM_BYTES = 64 * 1024 * 1024  # /dev/shm of a pod, as other runtimes have it

AGENT_BYTES = 1024 * 1024  # of each of the agent's two folders: sockets and small files; a guess

_HOSTS = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n"
_MAX_SERVERS = 3  # what resolvers read (resolv.conf(5)); Kubernetes cuts there too
_LOOPBACK = ("127.", "::1")
# systemd-resolved's list of the servers behind its loopback stub.
_RESOLVERS = (Path("/etc/resolv.conf"), Path("/run/systemd/resolve/resolv.conf"))


def hosts(pod: Mapping[str, Any], ip: str) -> str:
    """The text of /etc/hosts: localhost, the pod itself (with its domain name if it has one), ``spec.hostAliases``."""
    full, short = fqdn(pod), hostname(pod).partition(".")[0]
    own = f"{ip}\t{' '.join(name for name in (full, short) if name)}\n" if ip else ""
    aliases = (pod.get("spec") or {}).get("hostAliases") or []
    lines = [f"{alias['ip']}\t{' '.join(alias.get('hostnames') or [])}\n" for alias in aliases]
    return _HOSTS + own + "".join(lines)


def resolv_conf(pod: Mapping[str, Any], machine: str, *, agent: bool = False) -> str:
    """The text of /etc/resolv.conf: by ``dnsPolicy``, and the pod's ``dnsConfig``.

    ``None``: nothing else. ``Default``: the machine's. ``ClusterFirst``: the pod's agent, which knows the Services, with
    Kubernetes' search domains; in a pod without ``agent`` the machine's.
    """
    spec, policy = pod.get("spec") or {}, str((pod.get("spec") or {}).get("dnsPolicy") or "ClusterFirst")
    lines = [] if policy == "None" else machine.splitlines()
    if agent and policy.startswith("ClusterFirst"):
        lines = _of_agent(str(pod["metadata"]["namespace"]), lines)
    config = spec.get("dnsConfig") or {}
    servers = [*_values(lines, "nameserver"), *(config.get("nameservers") or ())]
    searches = [*_values(lines, "search", "domain"), *(config.get("searches") or ())]
    options = {text.partition(":")[0]: text for text in _values(lines, "options")}
    for option in config.get("options") or ():
        value = option.get("value")
        options[option["name"]] = f"{option['name']}:{value}" if value not in (None, "") else option["name"]
    made = [f"nameserver {server}\n" for server in dict.fromkeys(servers)][:_MAX_SERVERS]
    for name, words in (("search", list(dict.fromkeys(searches))), ("options", list(options.values()))):
        made += [f"{name} {' '.join(words)}\n"] if words else []
    return "".join(made)


def _of_agent(namespace: str, machine: Iterable[str]) -> list[str]:
    """The resolver that a pod's agent is; the machine's search domains come after those of the fabric."""
    domains = (f"{namespace}.svc.{CLUSTER_DOMAIN}", f"svc.{CLUSTER_DOMAIN}", CLUSTER_DOMAIN)
    searches = (*domains, *_values(machine, "search", "domain"))
    return ["nameserver 127.0.0.1", f"search {' '.join(searches)}", "options ndots:5"]


def _values(lines: Iterable[str], *names: str) -> list[str]:
    words = [line.split() for line in lines]
    return [word for parts in words if parts and parts[0] in names for word in parts[1:]]


def resolver(candidates: tuple[Path, ...] = _RESOLVERS) -> str:
    """The machine's resolver configuration without servers that only the machine's own loopback reaches."""
    text = ""
    for path in candidates:
        with contextlib.suppress(OSError):
            lines = path.read_text(errors="replace").splitlines()
            kept = [line for line in lines if not _on_loopback(line)]
            text = "".join(f"{line}\n" for line in kept)
            if any(line.startswith("nameserver") for line in kept):
                return text
    return text


def _on_loopback(line: str) -> bool:
    name, _, server = line.strip().partition(" ")
    return name == "nameserver" and server.strip().startswith(_LOOPBACK)


def make_agent_folders(pod_dir: Path) -> list[tuple[Path, int]]:
    """The agent's two folders, its own and the one that it shows the pod's containers, with the sizes in memory."""
    for name, mode in (("agent", 0o700), ("app", 0o755)):
        path = pod_dir / name
        path.mkdir(exist_ok=True)
        path.chmod(mode)
        os.chown(path, NOBODY, NOBODY)
    return [(pod_dir / "agent", AGENT_BYTES), (pod_dir / "app", AGENT_BYTES)]


def make_folders(pod_dir: Path, pod: Mapping[str, Any]) -> list[tuple[Path, int]]:
    """Make the pod's folders; answers those that are to be file systems in memory, with their sizes (0: default)."""
    for name in ("containers", "logs", "etc", "volumes", "shm"):
        (pod_dir / name).mkdir(parents=True, exist_ok=True)
    (pod_dir / "shm").chmod(0o1777)
    in_memory = [(pod_dir / "shm", SHM_BYTES)]
    group = ((pod.get("spec") or {}).get("securityContext") or {}).get("fsGroup")
    for volume in volumes(pod["spec"]).values():
        if volume.kind != "emptyDir":
            continue
        path = volume.path(pod_dir)
        path.mkdir(exist_ok=True)
        path.chmod(0o2777 if group is not None else 0o777)
        if group is not None:
            os.chown(path, -1, int(group))
        if volume.memory:
            in_memory.append((path, volume.size))
    return in_memory


def write_etc(pod_dir: Path, pod: Mapping[str, Any], ip: str, *, agent: bool = False) -> None:
    """Write the files that are mounted over the images' /etc."""
    machine = resolver()
    texts = {
        "hosts": hosts(pod, ip),
        "resolv.conf": resolv_conf(pod, machine, agent=agent),
        "agent-resolv.conf": machine,
        "hostname": f"{hostname(pod)}\n",
    }
    for name, text in texts.items():
        path = pod_dir / "etc" / name
        path.write_text(text)
        path.chmod(0o644)
