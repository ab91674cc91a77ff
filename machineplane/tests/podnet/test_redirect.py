"""Which port of a pod services are redirected to; the rule itself is tested in `integration-tests/podnet`."""

import random
import socket
from collections.abc import Iterator

import pytest

from machineplane.podnet.redirect import _is_free
from machineplane.runtime.agent_task import OTHER_PORTS, REDIRECT_PORT, redirect_ports


@pytest.fixture
def app() -> Iterator[socket.socket]:
    with socket.socket() as made:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(("127.0.0.1", 0))
        yield made


def test_a_port_at_which_an_app_listens_is_not_free_whatever_its_address(app: socket.socket) -> None:
    app.listen()
    port = app.getsockname()[1]
    assert not _is_free(port)
    with socket.create_connection(app.getsockname()) as client:
        accepted, _ = app.accept()
        accepted.close()
        assert client.recv(1) == b""
        app.close()
    assert _is_free(port)  # though a connection of it is left, as those of an agent that died


def test_the_usual_port_comes_first_and_then_others_and_none_that_a_container_names() -> None:
    chance = random.Random(1)
    plain = redirect_ports({"spec": {"containers": [{}, {"ports": None}]}}, chance)
    assert plain[0] == REDIRECT_PORT and len(set(plain)) == len(plain) > 4
    assert all(port in OTHER_PORTS for port in plain[1:])
    ports = [{"containerPort": REDIRECT_PORT}, {"containerPort": plain[2]}]
    pod = {"spec": {"containers": [{"ports": ports[:1]}], "initContainers": [{"ports": ports[1:]}]}}
    assert redirect_ports(pod, random.Random(1)) == (plain[1], *plain[3:])
