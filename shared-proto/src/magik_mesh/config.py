"""Configuration of a node: frozen, validated once."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from typing import Any

from attrs import Factory, field, frozen

from magik_mesh.addresses import Address, parse
from magik_mesh.errors import ConfigError
from magik_mesh.policy import Policy
from magik_proto.dht_kinds import Kind
from magik_proto.errors import RemoteProtocolError
from magik_proto.gossip_types import GossipConfig
from magik_proto.identity import BootstrapPeer, Identity
from trio_quic import AioquicCore, MakeCore


@frozen
class Timings:
    """Intervals in seconds.

    Where no source is named, the value is a guess that `lab kill` and the simulator can settle.
    """

    idle_timeout: float = 10.0  # QUIC: silence after which a connection is lost
    keep_alive: float = 3.0  # QUIC: ping interval; three may be lost before idle_timeout
    dial: float = 5.0  # one dial over all addresses of a peer, handshake and hello included
    redial: float = 2.0  # the one dial that decides between a hiccup and PeerDown: see `silence`
    stagger: float = 0.25  # head start of an address before the next is tried too (RFC 8305, 5: 250 ms)
    backoff_first: float = 0.2  # protocol.md: retries back off from 200 ms to 5 s
    backoff_cap: float = 5.0
    forget_after: float = 60.0  # a lost peer that nobody speaks of any more
    exchange: float = 30.0  # peer exchange with one connected peer, chosen at random
    tend: float = 5.0  # whom to be connected with is thought over, and what is not needed let go
    spare: float = (
        60.0  # in a large fabric: a connection that was dialled for a call and is not used is closed
    )
    retry_lost: float = 30.0  # one of the machines that were given up is tried again
    presence: float = 60.0  # own record gossiped again (protocol.md: DHT refresh 60 s)
    brief_idle: float = 10.0  # a brief connection (`magik_mesh.briefs`) without calls is closed
    header: float = 10.0  # a request's header must be complete by then

    @property
    def silence(self) -> float:
        """Seconds from a silent death to PeerDown, at most:

        Idle time-out, one keep-alive in flight, one redial.
        """
        return self.idle_timeout + self.keep_alive + self.redial


@frozen
class MeshLimits:
    """Caps, each with what happens at it."""

    calls_per_peer: int = 64  # handlers at work for one peer: the next call is answered "busy"
    streams: int = 128  # of one connection, that either side has opened: the next waits for one to end
    briefs: int = 32  # brief connections each way: see `magik_mesh.briefs` for what happens at it
    unread_answers: int = 32 << 20  # bytes of answers that a peer has not read: a further one becomes "busy"
    dials: int = 8  # parallel dials: others wait their turn
    known_peers: int = (
        1024  # directory: the one unconnected and unheard of for longest goes; none such: not learnt
    )
    peers_per_exchange: int = 64  # records in one hello or exchange: a random choice of them
    peers_when_large: int = 8  # likewise, where the fabric is larger than a node has connections
    addresses_per_peer: int = 8  # of a record: the rest is not used
    record_bytes: int = 16 << 10  # an encoded MachineRecord: a larger one is refused
    gossip_frames: int = 1024  # outgoing gossip frames queued per peer: the oldest is dropped and counted
    gossip_bytes: int = 4 << 20  # and their size: likewise
    validations: int = (
        256  # messages that wait for one topic's validator: the next is counted, and may come later
    )
    events: int = 1024  # unread peer events of one subscriber: its channel is closed
    handler_deadline: float = 3600.0  # the longest deadline (s) that a caller can ask of a handler


@frozen
class RelayLimits:
    """Numbers of relaying: what a relay grants, and how its two ends use it.

    All are guesses; what a fabric behind many NATs does to its relays would settle them.
    """

    reservations: int = (
        32  # machines that one relay can be reached by; more are refused. Half of 64 connections
    )
    circuits: int = 128  # of one relay: more are refused
    circuits_per_peer: int = 16  # of which one machine is an end, at one relay: likewise
    circuits_per_pair: int = (
        4  # between the same two, at one relay; and at a machine, from one other: likewise
    )
    rate: float = 1 << 20  # bytes per second of a circuit, both ways together: who sends more is slowed
    total_rate: float = 8 << 20  # and of all circuits of a relay
    burst: float = 256 << 10  # bytes that may go at once within these rates
    circuit_bytes: int = 4 << 30  # of one circuit in its life: it ends, and the ends open another
    circuit_life: float = 86_400.0  # seconds: likewise
    circuit_idle: float = 30.0  # seconds without a byte: it ends. Three idle time-outs of QUIC
    queue: int = 256  # datagrams that wait for a circuit at an end: more are lost, as on any wire
    paths: int = 64  # relayed connections of one machine: more are refused
    kept: int = 2  # relays that an unreachable machine keeps, so that one may die
    retry: float = 5.0  # seconds until a machine short of relays asks again
    refused: float = 60.0  # seconds for which a machine that refused is not asked again
    probers: int = 5  # peers that are asked to probe in one survey
    probe_wait: float = 1.0  # seconds for a probe to arrive: three are sent within 0.3 s
    settle: float = 0.2  # seconds after a new connection before a survey, for others that come together
    survey: float = 300.0  # seconds between surveys
    punch_first: float = 5.0  # seconds until a punch that failed is tried again; doubles
    punch_cap: float = 600.0
    linger: float = 2.0  # seconds for which a circuit is kept when the direct path has taken over


@frozen
class NodeConfig:
    """What a node is: who, where, in which plane, admitted by what.

    `member` is the encoded membership, or a pod's pass, that the certificate carries (None in an open fabric),
    `subject` what stands before the peer id in the SPIFFE name (a pod's workload), `advertise`
    holds `ip:port` texts for a machine that others reach by an address it cannot see itself, `labels`
    travel in the machine's record, `kinds` are those of the hash table's records beside machines' own.
    `max_connections` bounds the connections to peers: see `magik_mesh.connections` for the policy at it.
    `relays_for_others`: carry (encrypted) traffic between members that do not reach each other. `gossip` has the
    degrees and scores; where many machines of a fabric stand behind one address, raise
    `gossip.score.colocation_free`. `core` is the QUIC state machine: all machines of a fabric need the same.
    """

    host: str
    port: int
    identity: Identity
    policy: Policy
    plane: str = "magik-machine/1"
    member: bytes | None = None
    subject: str = ""
    bootstrap: tuple[BootstrapPeer, ...] = ()
    advertise: tuple[str, ...] = ()
    labels: Mapping[str, str] = Factory(dict)
    kinds: tuple[Kind[Any], ...] = ()
    max_connections: int = field(default=64)
    core: MakeCore = AioquicCore
    timings: Timings = Timings()
    limits: MeshLimits = MeshLimits()
    relays_for_others: bool = True
    relay: RelayLimits = RelayLimits()
    gossip: GossipConfig = Factory(GossipConfig)

    def __attrs_post_init__(self) -> None:
        try:
            ipaddress.ip_address(self.host)
            self.advertised()
        except (ValueError, RemoteProtocolError) as error:
            raise ConfigError(f"mesh address: {error}") from None
        if not 0 <= self.port <= 65535:
            raise ConfigError(f"mesh port {self.port} is not within 0 to 65535")
        if not 0 < len(self.plane.encode()) <= 255:
            raise ConfigError("plane must be an ALPN name of 1 to 255 bytes")
        if self.max_connections < 2:
            raise ConfigError(f"max_connections is {self.max_connections}, and must be at least 2")
        if self.limits.known_peers < 2 * self.max_connections:
            raise ConfigError(
                f"limits.known_peers is {self.limits.known_peers}, and must be twice max_connections at least: "
                "whoever is connected is known, and others have to be as well"
            )
        if any(peer.peer == self.identity.peer_id for peer in self.bootstrap):
            raise ConfigError(
                "--bootstrap-peer names this machine itself; name another one, or none for the first"
            )

    def advertised(self) -> tuple[Address, ...]:
        """`advertise`, parsed."""
        return tuple(parse(text) for text in self.advertise)
