"""What this machine lets pods do beyond an ordinary container. Nothing, unless its operator says so."""

from pathlib import Path

from attrs import frozen

from machineplane.runtime.errors import PodSpecError


@frozen(kw_only=True)
class HostPolicy:
    """``host_paths``: prefixes of the machine's own files that may be mounted; ``sysctls``: names allowed beyond the safe
    ones; ``seccomp_dir``: where ``Localhost`` profiles lie."""

    privileged: bool = False
    host_paths: tuple[str, ...] = ()
    sysctls: tuple[str, ...] = ()
    seccomp_dir: Path | None = None
    anything: bool = False

    @classmethod
    def everything(cls) -> "HostPolicy":
        """For asking whether *any* machine could run a pod: nothing is refused for this machine's sake."""
        return cls(privileged=True, host_paths=("/",), anything=True)

    def prefix_of(self, path: str) -> str:
        """The allowed prefix that a path of the machine lies in.

        Raises:
            PodSpecError: there is none.
        """
        for prefix in self.host_paths:
            if path == prefix or path.startswith(f"{prefix.rstrip('/')}/"):
                return prefix
        raise PodSpecError(f"the path {path} of this machine may not be mounted: see --allow-host-path")

    def check_path(self, path: str, where: str) -> None:
        """As :meth:`prefix_of`, naming the field."""
        try:
            self.prefix_of(path)
        except PodSpecError as error:
            raise PodSpecError(f"{where}: {error}") from error

    def check_sysctl(self, name: str, where: str) -> None:
        """Refuse a name that is neither safe nor allowed here."""
        if not self.anything and name not in self.sysctls:
            raise PodSpecError(f"{where} {name!r} is not allowed on this machine: see --allow-sysctl")
