"""DNS answers about the fabric's names: what is there, what is not, and what is somebody else's."""

from ipaddress import IPv4Address

import pytest
from dnslib import QTYPE, RCODE, DNSRecord
from hypothesis import given
from hypothesis import strategies as st

from workplane.names import (
    MAX_UDP_BYTES,
    Found,
    ServiceName,
    answer,
    failure,
    is_ours,
    parse_name,
    read_question,
    service_of,
    shortened,
)

DOMAIN = "cluster.local"
ADDRESS = IPv4Address("127.64.0.7")
KNOWN = {
    ServiceName("web", "default"): Found((ADDRESS,), {("http", "tcp"): 80}),
    ServiceName("db", "default", "db-0"): Found((IPv4Address("127.64.0.8"),)),
}


def ask(name: str, kind: str = "A") -> DNSRecord | None:
    question = read_question(DNSRecord.question(name, kind).pack())
    assert question is not None
    if not is_ours(question.name, DOMAIN):
        return None
    name = service_of(question, DOMAIN)
    return DNSRecord.parse(answer(question, DOMAIN, None if name is None else KNOWN.get(name)))


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("web.default.svc.cluster.local", ServiceName("web", "default")),
        ("WEB.Default.svc.CLUSTER.local.", ServiceName("web", "default")),
        ("db-0.db.default.svc.cluster.local", ServiceName("db", "default", "db-0")),
        ("default.svc.cluster.local", None),
        ("a.b.c.d.svc.cluster.local", None),
        ("web.default.svc.example.org", None),
        ("", None),
    ],
)
def test_names_are_taken_apart(name: str, found: ServiceName | None) -> None:
    assert parse_name(name, DOMAIN) == found


def test_a_service_has_its_address() -> None:
    reply = ask("web.default.svc.cluster.local")
    assert reply is not None and reply.header.aa and reply.header.rcode == RCODE.NOERROR
    assert [str(rr.rdata) for rr in reply.rr] == ["127.64.0.7"]
    assert [str(rr.rdata) for rr in ask("db-0.db.default.svc.cluster.local").rr] == ["127.64.0.8"]  # type: ignore[union-attr]


def test_another_type_of_a_name_that_is_there_is_empty_and_no_error() -> None:
    """Else a C library that asks for AAAA first would take the name for missing."""
    reply = ask("web.default.svc.cluster.local", "AAAA")
    assert reply is not None and reply.header.rcode == RCODE.NOERROR and not reply.rr
    assert reply.auth[0].rtype == QTYPE.SOA


def test_named_ports_are_services_too() -> None:
    reply = ask("_http._tcp.web.default.svc.cluster.local", "SRV")
    assert reply is not None
    assert (reply.rr[0].rdata.port, str(reply.rr[0].rdata.target)) == (80, "web.default.svc.cluster.local.")
    for name in ("_http._udp.web", "_none._tcp.web"):
        missing = ask(f"{name}.default.svc.cluster.local", "SRV")
        assert missing is not None and missing.header.rcode == RCODE.NXDOMAIN


@pytest.mark.parametrize(
    "name", ["none.default.svc.cluster.local", "svc.cluster.local", "cluster.local", "x.y.z.cluster.local"]
)
def test_what_is_not_there_is_told_and_not_asked_of_others(name: str) -> None:
    reply = ask(name)
    assert reply is not None and reply.header.rcode == RCODE.NXDOMAIN and reply.auth[0].rtype == QTYPE.SOA


@pytest.mark.parametrize("name", ["example.org", "local", "cluster.local.example.org", "mycluster.local"])
def test_other_names_are_somebody_elses(name: str) -> None:
    assert ask(name) is None


def test_an_answer_that_does_not_fit_says_so() -> None:
    question = read_question(DNSRecord.question("web.default.svc.cluster.local").pack())
    assert question is not None and question.room == 512
    assert shortened(question, b"x" * 512) == b"x" * 512
    short = DNSRecord.parse(shortened(question, b"x" * 513))
    assert short.header.tc and not short.rr and short.header.id == question.record.header.id
    assert DNSRecord.parse(failure(question)).header.rcode == RCODE.SERVFAIL


def test_what_is_no_question_gets_no_answer() -> None:
    asked = DNSRecord.question("web.default.svc.cluster.local")
    for message in (b"", b"\0" * 11, bytes(asked.reply().pack()), bytes(asked.pack())[:-3]):
        assert read_question(message) is None


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_passed_over(message: bytes) -> None:
    question = read_question(message)
    if question is not None:
        assert question.room <= MAX_UDP_BYTES
        name = service_of(question, DOMAIN)
        answer(question, DOMAIN, None if name is None else KNOWN.get(name))
