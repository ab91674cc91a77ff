"""What probes ask and what their results lead to: tables of specs, and the kubelet's rules as stories."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workplane.probes import (
    Changed,
    ContainerProbes,
    Exec,
    Grpc,
    HttpGet,
    Kind,
    Output,
    Probe,
    ProbeError,
    Restart,
    TcpSocket,
    probes_of,
)

PORTS = [{"name": "web", "containerPort": 8080}]


def read(kind: str = "livenessProbe", **probe: Any) -> Probe:
    return probes_of({"name": "app", "ports": PORTS, kind: probe})[Kind(kind)]


@pytest.mark.parametrize(
    ("spec", "check"),
    [
        ({"httpGet": {"port": 80}}, HttpGet(80)),
        ({"httpGet": {"port": "web", "path": "ready", "scheme": "https"}}, HttpGet(8080, "/ready", tls=True)),
        (
            {"httpGet": {"port": "80", "httpHeaders": [{"name": "X", "value": "y"}], "host": "localhost"}},
            HttpGet(80, headers=(("X", "y"),)),
        ),
        ({"tcpSocket": {"port": "web"}}, TcpSocket(8080)),
        ({"grpc": {"port": 9, "service": "s"}}, Grpc(9, "s")),
        ({"exec": {"command": ["cat", "/x"]}}, Exec(("cat", "/x"))),
    ],
)
def test_each_way_of_asking_is_read(spec: dict[str, Any], check: object) -> None:
    assert read(**spec).check == check


def test_defaults_are_those_of_kubernetes() -> None:
    assert read(tcpSocket={"port": 1}) == Probe(
        check=TcpSocket(1), initial_delay=0, period=10, timeout=1, successes=1, failures=3
    )


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ({}, None),
        ({"httpGet": {"port": 1}, "exec": {"command": ["x"]}}, "exactly one"),
        ({"httpGet": {"port": 1, "host": "192.0.2.1"}}, "own pod only"),
        ({"tcpSocket": {"port": 1, "host": "example.org"}}, "own pod only"),
        ({"httpGet": {"port": "nothing"}}, "no port of that name"),
        ({"httpGet": {"port": 0}}, "1 to 65535"),
        ({"httpGet": {"port": None}}, "1 to 65535"),
        ({"httpGet": {"port": 1, "scheme": "ftp"}}, "HTTP or HTTPS"),
        ({"httpGet": {"port": 1, "httpHeaders": [{"name": "X", "value": "a\r\nb"}]}}, "cannot be sent"),
        ({"httpGet": "x"}, "expected an object"),
        ({"exec": {"command": "ls"}}, "list of words"),
        ({"exec": {}}, "list of words"),
        ({"tcpSocket": {"port": 1}, "periodSeconds": 0}, "periodSeconds 0"),
        ({"tcpSocket": {"port": 1}, "periodSeconds": "x"}, "periodSeconds 'x'"),
        ({"tcpSocket": {"port": 1}, "timeoutSeconds": 1e9}, "timeoutSeconds"),
        ({"tcpSocket": {"port": 1}, "successThreshold": 2}, "must be 1"),
    ],
)
def test_what_cannot_be_asked_is_named(spec: dict[str, Any], told: str | None) -> None:
    if told is None:
        assert probes_of({"name": "app", "livenessProbe": spec}) == {}
        return
    with pytest.raises(ProbeError, match=rf"app\.livenessProbe.*{told}"):
        read(**spec)


class Story:
    """A container that is probed each second, and everything that came of it."""

    def __init__(self, *kinds: Kind, **numbers: Any) -> None:
        probe = Probe(check=TcpSocket(1), period=1, **numbers)
        self.machine = ContainerProbes(dict.fromkeys(kinds, probe))
        self.said: list[Output] = []
        self.now = 0.0
        self.run = 0

    def start(self) -> "Story":
        self.run += 1
        self.said += self.machine.running(self.run, self.now)
        return self

    def go(self, **well: bool) -> list[str]:
        """A second: what is due is answered as given; which probes were asked."""
        asked = [kind for kind, _ in self.machine.due(self.now)]
        for kind in asked:
            answer = well[kind.name.lower()]
            self.said += self.machine.result(kind, self.run, answer, "no", self.now)
        self.now += 1
        return sorted(kind.name.lower() for kind in asked)


def test_without_probes_a_running_container_is_ready() -> None:
    story = Story().start()
    assert story.said == [Changed(started=True, ready=True)]
    assert story.machine.next_timeout() is None
    assert story.machine.stopped() == [Changed(started=False, ready=False)]


def test_readiness_comes_and_goes_by_its_thresholds() -> None:
    story = Story(Kind.READINESS, successes=2, failures=2).start()
    assert story.machine.standing == Changed(started=True, ready=False)
    story.go(readiness=True)
    assert not story.machine.standing.ready
    story.go(readiness=True)
    assert story.machine.standing.ready
    story.go(readiness=False)
    assert story.machine.standing.ready
    story.go(readiness=False)
    assert story.said[-1] == Changed(started=True, ready=False)
    assert not any(isinstance(output, Restart) for output in story.said)


def test_liveness_restarts_once_and_waits_for_the_next_run() -> None:
    story = Story(Kind.LIVENESS, failures=3).start()
    for well in (False, False, True, False, False):
        story.go(liveness=well)
    assert story.machine.standing.ready
    story.go(liveness=False)
    assert story.said[-2:] == [Changed(started=True, ready=False), Restart("liveness probe failed: no")]
    assert story.go(liveness=False) == [] and story.machine.next_timeout() is None
    story.start()
    assert story.go(liveness=True) == ["liveness"] and story.machine.standing.ready


def test_nothing_else_is_asked_before_the_startup_probe_succeeds() -> None:
    story = Story(*Kind, failures=2).start()
    assert story.go(startup=False) == ["startup"]
    assert story.go(startup=True) == ["startup"]
    assert story.machine.standing == Changed(started=True, ready=False)
    assert story.go(liveness=True, readiness=True) == ["liveness", "readiness"]
    assert story.machine.standing.ready


def test_a_container_that_does_not_start_is_restarted() -> None:
    story = Story(Kind.STARTUP, Kind.LIVENESS, failures=2).start()
    story.go(startup=False)
    story.go(startup=False)
    assert story.said[-1] == Restart("startup probe failed: no")


def test_the_first_probe_waits() -> None:
    story = Story(Kind.LIVENESS, initial_delay=2).start()
    assert (story.machine.next_timeout(), story.go(), story.go()) == (2.0, [], [])
    assert story.go(liveness=True) == ["liveness"]


def test_a_probe_under_way_is_not_asked_again_and_one_of_another_run_says_nothing() -> None:
    machine = ContainerProbes({Kind.READINESS: Probe(check=TcpSocket(1))})
    machine.running("a", 0)
    assert len(machine.due(0)) == 1 and machine.due(100) == [] and machine.next_timeout() is None
    machine.running("b", 5)
    assert machine.result(Kind.READINESS, "a", True, "", 6) == []
    assert not machine.standing.ready
    assert machine.running("b", 7) == []


@given(
    st.lists(st.tuples(st.sampled_from([*Kind]), st.booleans()), max_size=60),
    st.integers(1, 4),
    st.sets(st.sampled_from([*Kind])),
)
def test_whatever_comes_a_restart_follows_as_many_failures_in_a_row(
    results: list[tuple[Kind, bool]], failures: int, kinds: set[Kind]
) -> None:
    machine = ContainerProbes({kind: Probe(check=TcpSocket(1), failures=failures) for kind in kinds})
    machine.running(1, 0)
    row: dict[Kind, int] = {}
    restarts = 0
    for kind, well in results:
        row[kind] = 0 if well else row.get(kind, 0) + 1
        outputs = machine.result(kind, 1, well, "", 0)
        restarts += sum(isinstance(output, Restart) for output in outputs)
        if any(isinstance(output, Restart) for output in outputs):
            assert kind is not Kind.READINESS and row[kind] >= failures
        assert not machine.standing.ready or machine.standing.started
    assert restarts <= 1
