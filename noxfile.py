"""Every check and every long job of the repository, by name: `nox --list` shows them.

Sessions set up what they need: an environment of their own, the distributions as wheels or editable, and (for what runs
containers) Debian's packages and libcrun by `scripts/setup_host.py`.
"""

import os
import shutil
from pathlib import Path

import nox

nox.options.default_venv_backend = "virtualenv"
nox.options.reuse_existing_virtualenvs = True
nox.options.error_on_missing_interpreters = False
nox.options.sessions = ["lint", "typecheck", "tests", "integration"]

ROOT = Path(__file__).parent
DISTRIBUTIONS = ("shared-proto", "machineplane", "workplane")
EDITABLE = ("-e", "./shared-proto[trio,native]", "-e", "./machineplane[wasm]", "-e", "./workplane")
BAKING = EDITABLE[:4]
TESTING = (
    "pytest>=8",
    "pytest-trio>=0.8",
    "pytest-xdist>=3.5",
    "hypothesis>=6.100",
    "coverage>=7",
    "pytest-cov>=5",
    "httpx>=0.27",
    "pycddl>=0.6",
    "grpcio>=1.60",
)
# A file's tests stay together, for they share what its fixtures set up.
SIDE_BY_SIDE = ("--dist", "loadfile", "-n")


def _install_all(session: nox.Session, *more: str) -> None:
    session.install(*EDITABLE, *TESTING, *more)


def _install_packages(session: nox.Session) -> None:
    """Debian's packages that are missing."""
    session.run("python", "scripts/setup_host.py", "--packages")


def _set_up_host(session: nox.Session) -> None:
    """Debian's packages and libcrun; says what it does, and does nothing where all is there."""
    session.run("python", "scripts/setup_host.py")


def _bake(session: nox.Session, *options: str) -> None:
    """The image of pods' agents, into the sources of machineplane; nothing where it is of these sources already."""
    session.run("python", "scripts/workplane_image", *options)


@nox.session
def lint(session: nox.Session) -> None:
    """ruff, import-linter, and a changelog fragment for each distribution whose source changed."""
    _install_all(session, "ruff>=0.6", "import-linter>=2.1", "towncrier>=24.8")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("lint-imports")
    session.run("python", "scripts/check_changes.py", *session.posargs)


@nox.session
def typecheck(session: nox.Session) -> None:
    """mypy --strict over all packages."""
    _install_all(session, "mypy>=1.11", "types-PyYAML")
    for package in ("magik_proto", "trio_quic", "magik_mesh", "machineplane", "workplane"):
        session.run("mypy", "-p", package)


@nox.session
def tests(session: nox.Session) -> None:
    """Unit tests, properties and simulations; no network beyond loopback. As root also those of unpacking images."""
    _install_all(session)
    if os.geteuid() == 0:
        _install_packages(session)
        marked: list[str] = []
    else:
        session.warn("not root: tests that make device nodes and mounts are left out")
        marked = ["-m", "not root"]
    session.run("pytest", *marked, *(session.posargs or ["-q", *SIDE_BY_SIDE, "auto"]))


@nox.session
def integration(session: nox.Session) -> None:
    """Real namespaces, containers, daemons and kubectl. Needs root."""
    # A real libkrun comes in the wheel of smolmachines, a fork of 1.17: one version, for its calls are what is tested.
    _install_all(session, "kubernetes>=30", "smolmachines==1.32.2")
    _set_up_host(session)
    _bake(session)
    # They wait more than they work; two, for each lab is a computer's worth of daemons.
    session.run("pytest", "integration-tests", *(session.posargs or ["-q", *SIDE_BY_SIDE, "2"]))


@nox.session
def demo(session: nox.Session) -> None:
    """The main job: three machines, one `kubectl apply`, real containers. `-- --keep` leaves the fabric up."""
    wheels = ROOT / "build" / "wheels"
    shutil.rmtree(wheels, ignore_errors=True)
    session.install("build>=1.2", *BAKING)
    _bake(session)
    for distribution in DISTRIBUTIONS:
        session.run("python", "-m", "build", "--wheel", "--outdir", str(wheels), distribution, silent=True)
    found = sorted(str(wheel) for wheel in wheels.glob("*.whl"))
    session.install("--force-reinstall", "--no-deps", *found)
    session.install(*(f"{wheel}[trio]" if "magik_proto" in wheel else wheel for wheel in found))
    _set_up_host(session)
    session.run("python", "scripts/demo.py", *session.posargs)


@nox.session
def wheels(session: nox.Session) -> None:
    """Build the three wheels and install each alone in an empty environment; machineplane's has the agent's image in it."""
    session.install("build>=1.2", "virtualenv", *BAKING)
    _bake(session)
    session.run("python", "scripts/check_wheels.py")


@nox.session(name="workplane-image")
def workplane_image(session: nox.Session) -> None:
    """Bake the image of pods' agents, of these sources and Debian's newest packages: `-- --help`; needs no root."""
    session.install(*BAKING)
    _bake(session, *(session.posargs or ["--force"]))


@nox.session(name="emulated-host")
def emulated_host(session: nox.Session) -> None:
    """A command on an emulated Debian 12 with systemd, cgroup v2 and KVM; slow, by hand: `-- machineplane check`."""
    session.install(*BAKING)
    _bake(session)
    session.run("python", "scripts/emulated_host", *session.posargs)


@nox.session
def bench(session: nox.Session) -> None:
    """Benchmarks, long, by hand: `nox -s bench -- codec quic`; without names, all. Each prints one JSON object."""
    _install_all(session, "-e", "./shared-proto[trio,native]", "grpcio>=1.60")
    wanted = set(session.posargs)
    if os.geteuid() == 0 and (not wanted or wanted & {"apply", "cycles", "runtime"}):
        _set_up_host(session)  # crun and podman are compared with where they are installed
    for script in sorted(ROOT.glob("*/benchmarks/*.py")):
        if not wanted or script.stem in wanted:
            env = {"LIBP2P_PYTHON": _libp2p(session)} if script.stem in ("gossip", "mesh") else {}
            session.run("python", str(script), env=env)


def _libp2p(session: nox.Session) -> str:
    """The interpreter of an environment with py-libp2p, which wants versions of its own; empty if it cannot be had."""
    place = Path(session.create_tmp()) / "libp2p"
    python = place / "bin" / "python"
    if not (place / "installed").exists():
        session.run("python", "-m", "venv", str(place))
        try:
            session.run(str(python), "-m", "pip", "install", "-q", "libp2p==0.8.1", external=True)
        except nox.command.CommandFailed:
            session.warn("py-libp2p cannot be installed: it is left out")
            return ""
        (place / "installed").touch()
    return str(python.absolute())


@nox.session
def simulate(session: nox.Session) -> None:
    """Long simulations: `nox -s simulate -- scale --nodes 10000 --seed 1`, `-- leadership --schedules 1000000
    --seed 1`, `-- plot FOLDER` of scale's results; the last line is JSON.

    `-- --seeds 3000` runs the simulations among the tests with many more seeds than the tests use.
    """
    args = list(session.posargs)
    _install_all(session, *(["matplotlib>=3.8"] if args[:1] == ["plot"] else []))
    if args and not args[0].startswith("-"):
        session.run("python", "shared-proto/simulate", *args)
        return
    seeds = args[args.index("--seeds") + 1] if "--seeds" in args else "1000"
    session.run("pytest", "shared-proto/tests/machines/sim", "-q", env={"MAGIK_SIM_SEEDS": seeds})


@nox.session
def fuzz(session: nox.Session) -> None:
    """Mutated bytes into every decoder, seeded: `nox -s fuzz -- --inputs 1000000 --seed 1`; the last line is JSON.

    `nox -s fuzz -- handshakes`: 10,000 handshakes that must not succeed, against a mesh node; a line of JSON each core.
    """
    _install_all(session)
    if session.posargs[:1] == ["handshakes"]:
        env = {"MAGIK_HANDSHAKES": "10000"}
        session.run("pytest", "-q", "-s", "shared-proto/tests/magik_mesh/test_handshakes.py", env=env)
        return
    session.run(
        "python", "shared-proto/fuzz/mutate.py", *(session.posargs or ["--inputs", "1000000", "--seed", "1"])
    )
