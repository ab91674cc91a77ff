"""The names of a fabric's services, and DNS answers about them. No I/O; messages are read and written by dnslib.

Names are those of Kubernetes: ``SERVICE.NAMESPACE.svc.DOMAIN``, ``POD.SERVICE.NAMESPACE.svc.DOMAIN`` for the pods of a
StatefulSet, and, of our own, ``leader.SERVICE.NAMESPACE.svc.DOMAIN``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from ipaddress import IPv4Address
from typing import Final

import dnslib  # and no name of it: an agent loads it at the first question
from attrs import field, frozen

TTL_S: Final = 5
"""As Kubernetes' own DNS: a name's address does not change here, but the name may go."""
UDP_BYTES: Final = 512
"""Of an answer by UDP, where the question does not say that it takes more (RFC 1035, 4.2.1)."""
MAX_UDP_BYTES: Final = 1232
"""Of any answer by UDP: what no path has to take apart (DNS flag day 2020)."""


@frozen
class ServiceName:
    """A name within the fabric's domain; `part` is a pod's name or ``leader``."""

    service: str
    namespace: str
    part: str = ""


@frozen
class Found:
    """What stands under a name: addresses, and for each named port (``_web._tcp``) its number; or another name, `alias`."""

    addresses: tuple[IPv4Address, ...] = ()
    ports: Mapping[tuple[str, str], int] = field(factory=dict)
    alias: str = ""


def parse_name(name: str, domain: str) -> ServiceName | None:
    """The service that a name means; None for a name that is not one below ``svc.DOMAIN``."""
    suffix = f".svc.{domain}"
    lower = name.rstrip(".").lower()
    if not lower.endswith(suffix):
        return None
    labels = lower.removesuffix(suffix).split(".")
    match labels:
        case [service, namespace]:
            return ServiceName(service, namespace)
        case [part, service, namespace]:
            return ServiceName(service, namespace, part)
    return None


def is_ours(name: str, domain: str) -> bool:
    """Whether a name is below the fabric's domain: such names are never asked of others."""
    lower = name.rstrip(".").lower()
    return lower == domain or lower.endswith(f".{domain}")


@frozen
class Question:
    """A question that can be answered or passed on; `room` is what an answer by UDP may have, in bytes."""

    record: dnslib.DNSRecord
    name: str
    room: int


def read_question(message: bytes) -> Question | None:
    """The one question of a message; None for what is no question that anybody has to answer."""
    try:
        record = dnslib.DNSRecord.parse(message)
    except (dnslib.DNSError, ValueError, IndexError, UnicodeError):
        return None
    if record.header.qr or record.header.opcode != dnslib.OPCODE.QUERY or len(record.questions) != 1:
        return None
    told = [rr.edns_len for rr in record.ar if rr.rtype == dnslib.QTYPE.OPT]
    room = min(max([UDP_BYTES, *told]), MAX_UDP_BYTES)
    return Question(record, str(record.q.qname), room)


def service_of(question: Question, domain: str) -> ServiceName | None:
    """The service that a question is about; None if its name is ours and cannot be a service's."""
    return parse_name(_port_of(question.name)[1], domain)


def answer(question: Question, domain: str, found: Found | None, others: Iterable[dnslib.RR] = ()) -> bytes:
    """The answer to a question about a name of ours, under which `found` stands (None: there is no such name), and for an
    alias `others`, what stands under the name that it means.
    """
    reply = question.record.reply(ra=1, aa=1)
    port, name = _port_of(question.name)
    if found is None or (port is not None and port not in found.ports):
        reply.header.rcode = dnslib.RCODE.NXDOMAIN
    elif port is not None and question.record.q.qtype in (dnslib.QTYPE.SRV, dnslib.QTYPE.ANY):
        reply.add_answer(
            dnslib.RR(
                question.name, dnslib.QTYPE.SRV, ttl=TTL_S, rdata=dnslib.SRV(0, 100, found.ports[port], name)
            )
        )
    elif port is None and found.alias:
        reply.add_answer(
            dnslib.RR(question.name, dnslib.QTYPE.CNAME, ttl=TTL_S, rdata=dnslib.CNAME(found.alias)), *others
        )
    elif port is None and question.record.q.qtype in (dnslib.QTYPE.A, dnslib.QTYPE.ANY):
        for address in found.addresses:
            reply.add_answer(
                dnslib.RR(question.name, dnslib.QTYPE.A, ttl=TTL_S, rdata=dnslib.A(str(address)))
            )
    if not reply.rr:
        # An answer without records is remembered for as long as this says, no longer (RFC 2308).
        reply.add_auth(dnslib.RR(domain, dnslib.QTYPE.SOA, ttl=TTL_S, rdata=_authority(domain)))
    return bytes(reply.pack())


def about(question: Question, name: str) -> Question:
    """The same question about another name."""
    record = dnslib.DNSRecord(
        dnslib.DNSHeader(id=question.record.header.id, rd=1),
        q=dnslib.DNSQuestion(name, question.record.q.qtype),
    )
    return Question(record, name, MAX_UDP_BYTES)


def _authority(domain: str) -> dnslib.SOA:
    return dnslib.SOA(f"ns.{domain}", f"hostmaster.{domain}", (1, 3600, 600, 86_400, TTL_S))


def _port_of(name: str) -> tuple[tuple[str, str] | None, str]:
    """``_web._tcp.SERVICE…`` taken apart: the port's name and protocol, and the service's name."""
    labels = name.lower().split(".")
    if len(labels) > 2 and labels[0].startswith("_") and labels[1] in ("_tcp", "_udp"):
        return (labels[0][1:], labels[1][1:]), ".".join(labels[2:])
    return None, name


def shortened(question: Question, reply: bytes) -> bytes:
    """A reply that does not fit into a datagram, as one that says so: the question comes again by TCP."""
    if len(reply) <= question.room:
        return reply
    short = question.record.reply(ra=1)
    short.header.tc = 1
    return bytes(short.pack())


def failure(question: Question) -> bytes:
    """Nobody could be asked."""
    reply = question.record.reply(ra=1)
    reply.header.rcode = dnslib.RCODE.SERVFAIL
    return bytes(reply.pack())
