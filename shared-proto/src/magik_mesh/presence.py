"""What this node says of itself and takes from others: hellos, machine records, peer exchange. No I/O.

News about machines goes to the dial plan, so that every machine that is heard of gets dialled while there
is room.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable

from attrs import define, field
from structlog.typing import FilteringBoundLogger

from magik_mesh.addresses import Address, OwnAddresses, parse, plain_host, text_of
from magik_mesh.clock import Bits, Clock
from magik_mesh.config import NodeConfig
from magik_mesh.dialing import DialPlan
from magik_mesh.directory import Directory
from magik_mesh.errors import ConfigError
from magik_mesh.hello import Hello
from magik_mesh.stats import Stats
from magik_mesh.tls import admit
from magik_proto import signing
from magik_proto.errors import LocalProtocolError, RemoteProtocolError
from magik_proto.gossip_types import Accept, Judgement, Verdict
from magik_proto.identity import PeerId
from magik_proto.machine import shuffled
from magik_proto.records import MachineRecord
from magik_proto.wire import decode_as, encode_message
from trio_quic import PeerRejected


@define(eq=False)
class Presence:
    """The node's own record and its view of others. `connected` tells whom we have a connection with."""

    config: NodeConfig
    clock: Clock
    addresses: OwnAddresses
    directory: Directory
    plan: DialPlan
    stats: Stats
    log: FilteringBoundLogger
    connected: Callable[[], Collection[PeerId]]
    announce: Callable[[bytes], None]  # tell the fabric of a record
    store: Callable[[bytes], None]  # have our record kept by the hash table
    on_news: Callable[[], None]  # the dial plan has grown
    large: bool = False  # the fabric is: few records go into hellos and exchanges
    _relays: tuple[PeerId, ...] = ()  # by whom we can be reached, when not by ourselves
    _record: MachineRecord = field(init=False)
    _encoded: bytes = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._record = self._signed(seq=self.clock.timestamp())
        self._encoded = encode_message(self._record)

    # -- what we say

    def own_record(self) -> bytes:
        """Our signed record, encoded."""
        return self._encoded

    def renew(self) -> bytes:
        """Sign our record anew, with what is true now."""
        self._record = self._signed(seq=max(self._record.seq + 1, self.clock.timestamp()))
        self._encoded = encode_message(self._record)
        return self._encoded

    def reached_from(self, host: str) -> None:
        """We reach others from this address of ours."""
        if self.addresses.reached_from(host):
            self._changed()

    def set_relays(self, relays: tuple[PeerId, ...]) -> None:
        """By whom we can be reached; nobody's help is needed when there are none."""
        if relays != self._relays:
            self._relays = relays
            self._changed()
            self.store(self._encoded)

    def some_records(self) -> tuple[bytes, ...]:
        """Records of others for a hello or an exchange: a random choice when there are many."""
        records = self.directory.records(self.clock.timestamp())
        return tuple(shuffled(Bits(self.clock), records)[: self.config.limits.peers_per_exchange])

    # -- what we hear

    def hear_hello(self, peer: PeerId, hello: Hello, address: Address) -> None:
        """`peer` greeted us from `address`.

        Raises `RemoteProtocolError` if its own record is not its own or invalid.
        """
        now = self.clock.now()
        self.directory.observe(peer, (plain_host(address[0]), address[1]), now, self.connected())
        record = self.learn(hello.record)
        if record is not None:
            if record.peer != peer:
                raise RemoteProtocolError("mesh.hello", f"{peer} greeted with the record of {record.peer}")
            # Introduce the newcomer: it may not be in anybody's gossip mesh yet.
            self.announce(hello.record)
        self.hear_records(peer, hello.peers)
        self._seen_as(hello.seen)

    def hear_records(self, peer: PeerId, records: Iterable[bytes]) -> None:
        """Records that `peer` handed on: bad ones are counted and left out."""
        for encoded in records:
            try:
                self.learn(encoded)
            except RemoteProtocolError as error:
                self.stats.records_refused += 1
                self.log.debug("record refused", source=str(peer), error=str(error))

    def learn(self, encoded: bytes) -> MachineRecord | None:
        """Take a record in, and plan to dial its machine;

        None if it was no news. Raises `RemoteProtocolError`.
        """
        now, timestamp = self.clock.now(), self.clock.timestamp()
        record = self.directory.learn(encoded, now, timestamp, self.connected(), self.check_member)
        if record is not None:
            self.plan.want(record.peer, now)
            self.plan.hurry(record.peer, now)
            self.on_news()
        return record

    async def judge(self, source: PeerId, payload: bytes) -> Judgement:
        """The validator of the presence topic:

        The newest record of a machine is handed on, older ones are not.
        """
        try:
            record = self.learn(payload)
            if record is None and self.directory.has(payload):
                record = decode_as(MachineRecord, payload)  # verified when it was learnt
            return Verdict.IGNORE if record is None else Accept(record.peer)
        except RemoteProtocolError as error:
            self.stats.records_refused += 1
            self.log.debug("presence refused", source=str(source), error=str(error))
            # Expiry, revocation and clocks are judged differently by honest machines: only what no machine
            # would have handed on is held against the sender.
            blame = error.rule.startswith(("codec.", "message.", "signature."))
            return Verdict.REJECT if blame else Verdict.IGNORE

    def relays_of(self, peer: PeerId) -> tuple[PeerId, ...]:
        """By whom `peer` (this machine too) says that it is reached; nobody if it needs no relay."""
        known = self.directory.get(peer)
        record = self._record if peer == self.config.identity.peer_id else known and known.record
        return (record.relays or ()) if record else ()

    def known_alive(self) -> int:
        """How many other machines have told of themselves within the life of a record."""
        return len(self.directory.records(self.clock.timestamp()))

    def expire(self) -> None:
        """Forget what is too old."""
        self.directory.expire(self.clock.timestamp(), [*self.connected(), *self.plan.wanted()])

    def check_member(self, record: MachineRecord, _: int = 0) -> None:
        """Return if the record's machine is a member; RemoteProtocolError (``record.member``) if not."""
        try:
            admit(self.config.policy, record.peer, record.member, self.clock)
        except PeerRejected as error:
            raise RemoteProtocolError("record.member", error.reason) from error

    def _seen_as(self, text: str) -> None:
        try:
            address = parse(text)
        except RemoteProtocolError:
            return
        if self.addresses.seen_as(address):
            self._changed()

    def _changed(self) -> None:
        self.announce(self.renew())

    def _signed(self, seq: int) -> MachineRecord:
        try:
            record = MachineRecord(
                peer=self.config.identity.peer_id,
                addrs=tuple(text_of(address) for address in self.addresses.current()),
                labels=dict(self.config.labels),
                member=self.config.member,
                relays=self._relays or None,
                seq=seq,
                timestamp=self.clock.timestamp(),
                nonce=signing.new_nonce(self.clock.random),
            )
        except LocalProtocolError as error:
            raise ConfigError(f"this machine's record cannot be written: {error}") from error
        return signing.sign(record, self.config.identity)
