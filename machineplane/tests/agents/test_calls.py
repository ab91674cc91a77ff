"""What an agent can send, and what becomes of it."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from machineplane.agents import calls
from machineplane.agents.calls import Refusal, parse_call
from magik_proto.identity import PeerId

KEY = "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"


def parse(method, target, body=None):
    return parse_call(method, target, b"" if body is None else json.dumps(body).encode())


def test_every_call_of_the_table_is_read():
    assert parse("POST", "/v1/pass", {"key": KEY}) == calls.PassCall(PeerId.parse(KEY))
    assert parse("GET", "/v1/state?since=7") == calls.StateCall(7)
    assert parse("GET", "/v1/state") == calls.StateCall(0)
    assert parse("POST", "/v1/containers/main/restart", {"reason": "dead"}) == calls.RestartCall(
        "main", "dead"
    )
    assert parse("POST", "/v1/containers/main/exec", {"command": ["true"], "timeout_s": 2}) == calls.ExecCall(
        "main", ("true",), 2.0
    )
    assert parse("GET", "/v1/services/shop/web") == calls.ServiceCall("shop", "web")
    assert parse("POST", "/v1/heal", {"missing": 2, "generation": 1}) == calls.HealCall(2, 1)
    report = parse(
        "PUT",
        "/v1/status",
        {
            "containers": {"main": {"ready": False, "started": True, "message": "refused\n"}},
            "agent": {"peer": KEY, "port": 4701},
            "leader": {"generation": 3, "term": 9},
        },
    )
    assert report == calls.StatusReport(
        containers={"main": calls.Standing(False, True, "refused ")},
        peer=PeerId.parse(KEY),
        port=4701,
        leader=calls.LeaderSaid(3, 9),
    )


def test_a_status_may_say_little():
    assert parse("PUT", "/v1/status", {}) == calls.StatusReport()
    assert parse("PUT", "/v1/status", {"leader": None, "agent": None, "containers": None}).leader is None


@pytest.mark.parametrize(
    ("method", "target"),
    [
        ("GET", "/v1/pass"),
        ("POST", "/v1/state"),
        ("GET", "/"),
        ("GET", "/v2/state"),
        ("GET", "/v1/pods/other/status"),
        ("POST", "/v1/containers/main"),
        ("GET", "/v1/services/default"),
        ("GET", "/v1/services/../x"),
        ("GET", "/v1/services/default/%2e%2e"),
        ("POST", "/v1/containers/a%2Fb/restart"),
        ("GET", "/v1/services/default/web/"),
        ("GET", "http://[::1/v1/state"),
        ("GET", "/v1/%ff"),
    ],
)
def test_whatever_is_not_in_the_table_is_not_there(method, target):
    with pytest.raises(Refusal) as refused:
        parse(method, target, {"reason": "x"})
    assert refused.value.code == 404


@pytest.mark.parametrize(
    ("method", "target", "body", "named"),
    [
        ("POST", "/v1/pass", {}, "key"),
        ("POST", "/v1/pass", {"key": "00"}, "key"),
        ("POST", "/v1/pass", [], "object"),
        ("GET", "/v1/state?since=-1", None, "since"),
        ("GET", "/v1/state?since=1e9", None, "since"),
        ("PUT", "/v1/status", {"containers": {"main": {"ready": 1, "started": True}}}, "containers"),
        ("PUT", "/v1/status", {"containers": {"main": []}}, "containers"),
        ("PUT", "/v1/status", {"agent": {"port": 0}}, "port"),
        ("PUT", "/v1/status", {"agent": {"port": True}}, "port"),
        ("PUT", "/v1/status", {"leader": {"generation": 1}}, "leader"),
        ("POST", "/v1/containers/main/restart", {}, "reason"),
        ("POST", "/v1/containers/main/exec", {"command": [], "timeout_s": 1}, "command"),
        ("POST", "/v1/containers/main/exec", {"command": ["a\0b"], "timeout_s": 1}, "command"),
        ("POST", "/v1/containers/main/exec", {"command": ["\ud800"], "timeout_s": 1}, "command"),
        ("POST", "/v1/containers/main/exec", {"command": ["a"], "timeout_s": 0}, "timeout_s"),
        ("POST", "/v1/containers/main/exec", {"command": ["a"], "timeout_s": float("inf")}, "timeout_s"),
        ("POST", "/v1/heal", {"missing": -1, "generation": 0}, "missing"),
    ],
)
def test_what_is_wrong_is_named(method, target, body, named):
    with pytest.raises(Refusal) as refused:
        parse(method, target, body)
    assert refused.value.code == 400 and named in refused.value.message


def test_limits_hold():
    many = {f"c{n}": {"ready": True, "started": True} for n in range(calls.MAX_CONTAINERS + 1)}
    with pytest.raises(Refusal):
        parse("PUT", "/v1/status", {"containers": many})
    with pytest.raises(Refusal):
        words = ["x"] * (calls.MAX_WORDS + 1)
        parse("POST", "/v1/containers/main/exec", {"command": words, "timeout_s": 1})
    call = parse("POST", "/v1/containers/main/exec", {"command": ["x"], "timeout_s": 10**30})
    assert call.timeout_s == calls.MAX_TIMEOUT_S
    assert len(parse("POST", "/v1/containers/main/restart", {"reason": "é" * 9999}).reason) == calls.MAX_TEXT
    with pytest.raises(Refusal):
        parse_call("PUT", "/v1/status", b"[" * 100_000)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
names = st.sampled_from(
    ["key", "containers", "agent", "peer", "port", "leader", "reason", "command", "timeout_s", "missing"]
)
targets = st.sampled_from(
    [
        ("POST", "/v1/pass"),
        ("PUT", "/v1/status"),
        ("POST", "/v1/containers/main/exec"),
        ("POST", "/v1/containers/main/restart"),
        ("POST", "/v1/heal"),
    ]
)


@given(targets, st.dictionaries(names, json_values, max_size=6))
def test_no_body_does_more_than_be_refused(target, body):
    try:
        parse(*target, body)
    except Refusal as refused:
        assert refused.code == 400


@given(st.text(max_size=40), st.text(max_size=80))
def test_no_target_does_more_than_be_refused(method, target):
    try:
        parse_call(method, target, b"{}")
    except Refusal as refused:
        assert refused.code in (400, 404)
