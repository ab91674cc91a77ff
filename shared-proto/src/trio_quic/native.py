"""A core whose packets are made by native code: qh3's (the extra ``native``), held to the rules of
:mod:`trio_quic.interface`::

    async with open_endpoint(..., core=NativeCore) as endpoint: ...

qh3's server cannot ask a client for its certificate. So the client checks the server by TLS and then proves itself
inside the channel (:mod:`trio_quic.proof`), before either side is ``established``; ALPN names differ from those of the
other core (``+proof`` is appended), so that the two never meet by mistake or by an attacker's wish.

Where this core does otherwise than :class:`~trio_quic.core.AioquicCore`:

- *Credit follows consumption for a connection as a whole.* qh3 gives credit for what is taken out of it, all streams
  in one queue. Nothing is taken out while ``Limits.connection_window`` bytes have not been read by the application;
  so a connection costs at most two such windows, and one stream that nobody reads can fill both, whereupon the
  connection's other streams wait with it.
- *Peers may have 100 streams open*, whatever ``Limits.max_streams`` says: qh3 has it built in. Ours are held to both.
- ``buffered`` counts what was not yet sent for the first time; what is on its way comes on top, and is bounded by the
  congestion window and the peer's credit.
- qh3 counts bytes that arrived out of order, and not in how many pieces: a proven peer that sends its window in pieces of
  a byte makes it cost a multiple. Before the proof MAX_UNPROVEN bounds that, too.
- A server does not notice a client's restart by a stateless reset, but by the idle time-out.
"""

import os
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress

import attrs

from .errors import PeerRejected
from .interface import (
    Address,
    CidIssued,
    CidRetired,
    CoreConfig,
    CoreFault,
    Data,
    Datagram,
    Event,
    Reset,
    Stopped,
    Termination,
)
from .native_quic import NativeEvent, NativeQuic
from .proof import NONCE_BYTES, Examiner, Prover, load_certificate
from .tls import CertificateCheck, ask_application, check_certificate, short_reason

ALPN_SUFFIX = "+proof"

# What a client may send, in bytes of datagrams, before it has proven itself: a handshake with the largest proof takes
# 22 KiB; some may be repeated. qh3 keeps up to 512 KiB of TLS a connection, byte by byte. At it, it is dropped.
MAX_UNPROVEN = 64 * 1024

# Events that may wait inside while there is no room. At it, datagrams are dropped as if they had been lost: only
# a peer that opens and abandons streams in haste comes here.
MAX_WAITING = 4096

# Streams of the peer that the application has not let go of, as a multiple of those that can be open on the wire:
# more are over on the wire and unread. At it, nothing more is taken out until some are let go of.
STREAMS_AHEAD = 2
_PEER_STREAMS = 100  # qh3's own limit

_PROOF_STREAM = 1  # the server's first (RFC 9000 §2.1)
_UNIDIRECTIONAL = 0x2
_ACCESS_DENIED = 0x100 + 49  # RFC 9000 §20.1 with RFC 8446 §6.2
_NO_APPLICATION_PROTOCOL = 0x100 + 120
_PROTOCOL_VIOLATION = 0x0A
_STREAM_LIMIT_ERROR = 0x04
_FRAME_CRYPTO = 0x06
_INTERNAL_ERROR = 0x01
_OVER = ("closing", "draining", "terminated")


@attrs.define
class _Stream:
    """What is kept of a stream."""

    unread: int = 0
    let_go: bool = False
    received_all: bool = False
    finished: bool = False
    """Over on the wire, both ways."""


class NativeCore:
    """A :class:`~trio_quic.interface.Core` over qh3. See the module's text."""

    def __init__(
        self,
        config: CoreConfig,
        check: CertificateCheck,
        *,
        original_cid: bytes | None = None,
        retry_cid: bytes | None = None,
    ) -> None:
        config = attrs.evolve(config, alpn=config.alpn + ALPN_SUFFIX)
        self._config = config
        self._limits = config.limits
        self._check = check
        self._is_client = original_cid is None
        self._retried = retry_cid is not None
        self._quic = NativeQuic(config, self, original_cid, retry_cid)
        self._remote: Address | None = None
        self._out: deque[Event] = deque()
        self._streams: dict[int, _Stream] = {}
        self._unread = 0
        self._theirs = 0
        self._ours = 0
        self._waiting = 0
        self._heard = 0
        self._broken = False
        self._over = False
        self._end: Termination | None = None
        self._established = False
        self._verified: object = None
        self._rejection: PeerRejected | None = None
        self._prover: Prover | None = None
        self._examiner: Examiner | None = None
        self._server_checked = False
        if self._is_client:
            self._prover = Prover(config.credentials)
        else:
            nonce = self._fresh_nonce()
            self._examiner = Examiner(config.credentials.certificate, check, nonce)
            self._quic.send_stream_data(_PROOF_STREAM, nonce)

    # -- who is there

    @property
    def cid(self) -> bytes:
        """See Core."""
        return bytes(self._quic.host_cid)

    @property
    def is_known(self) -> bool:
        """See Core."""
        raw = self._quic.raw
        return raw is not None and not self._broken and bool(raw.received_authenticated_packet)

    @property
    def address_proven(self) -> bool:
        """See Core."""
        return self._is_client or self._retried or self._quic.handshake_complete

    @property
    def established(self) -> bool:
        """See Core."""
        return self._established

    @property
    def verified(self) -> object:
        """See Core."""
        return self._verified

    @property
    def rejection(self) -> PeerRejected | None:
        """See Core."""
        return self._rejection

    @property
    def remote_address(self) -> Address | None:
        """See Core."""
        raw = self._quic.raw
        if raw is not None and not self._broken:
            self._remote = raw.active_path[2][:2]
        return self._remote

    @property
    def peer_reset_token(self) -> bytes:
        """See Core."""
        return self._quic.peer_reset_token

    # -- datagrams and time

    def connect(self, address: Address, now: float) -> None:
        """See Core."""
        self._quic.connect(address, now=now)

    def receive(self, data: bytes, address: Address, now: float) -> None:
        """See Core."""
        if self._end is not None or self._waiting >= MAX_WAITING:
            return
        if not self._established and not self._is_client:
            self._heard += len(data)
            if self._heard > MAX_UNPROVEN:
                raise CoreFault(f"{address} sent {MAX_UNPROVEN} bytes and did not prove itself")
        self._guarded(lambda: self._take_in(data, address, now))

    def timer(self, now: float) -> None:
        """See Core."""
        self._guarded(lambda: self._on_timer(now))

    def next_timeout(self) -> float | None:
        """See Core."""
        timer: list[float | None] = [None]
        self._quietly(lambda: timer.append(self._quic.get_timer()))
        return timer[-1]

    @property
    def is_calm(self) -> bool:
        """See Core. Its timers are not known by kind."""
        return False

    def datagrams(self, now: float) -> list[Datagram]:
        """See Core."""
        out: list[Datagram] = []
        self._guarded(lambda: self._transmit(now, out))
        return out

    def wants_to_send(self, now: float) -> bool:
        """See Core."""
        return True  # qh3 does not tell; asking it for datagrams costs less than anything that would

    @property
    def has_news(self) -> bool:
        """See Core."""
        return True

    @property
    def has_events(self) -> bool:
        """See Core."""
        raw = self._quic.raw
        return bool(self._out) or (
            raw is not None and not self._broken and bool(raw.has_events) and self.has_room()
        )

    def events(self) -> Iterator[Event]:
        """See Core."""
        self._quietly(self._quic.drain)
        while self._out:
            yield self._out.popleft()

    def seek_reset_token(self) -> None:
        """See Core. A client has it from the handshake."""

    def ping(self) -> None:
        """See Core."""
        self._quietly(lambda: self._quic.send_ping(0))

    def close(self, code: int, reason: str) -> None:
        """See Core."""
        self._quietly(lambda: self._quic.close(error_code=code, reason_phrase=short_reason(reason)))

    @property
    def termination(self) -> Termination | None:
        """See Core."""
        if self._end is None and (failure := self._quic.failure) is not None:
            self._end = Termination("us", *failure)
        return self._end

    # -- streams

    def can_open(self) -> bool:
        """See Core."""
        raw = self._quic.raw
        if raw is None or self._broken or self._ours >= self._limits.max_streams:
            return False
        allowed, _, opened, _ = raw.stream_limits
        return bool(opened < allowed)

    def open_stream(self) -> int:
        """See Core."""
        stream_id = int(self._quic.raw.open_stream(False))
        self._ours += 1
        self._streams[stream_id] = _Stream()
        return stream_id

    def buffered(self, stream_id: int) -> int:
        """See Core."""
        return 0 if self._broken else int(self._quic.raw.get_send_buffer_size(stream_id))

    def send(self, stream_id: int, data: bytes, *, fin: bool = False) -> None:
        """See Core."""
        if self._can_send(stream_id):
            self._quietly(lambda: self._quic.raw.send_stream(stream_id, data, fin))

    def reset(self, stream_id: int, code: int) -> None:
        """See Core."""
        if self._can_send(stream_id):
            self._quietly(lambda: self._quic.raw.reset_stream(stream_id, code))

    def stop(self, stream_id: int, code: int) -> None:
        """See Core."""
        stream = self._streams[stream_id]
        if self._broken or stream.received_all or stream.finished:
            return
        try:
            self._quic.raw.stop_sending(stream_id, code)
        except (ValueError, RuntimeError):
            return  # all has arrived, and waits inside to be told of

    def consumed(self, stream_id: int, count: int) -> bool:
        """See Core."""
        had_room = self.has_room()
        self._streams[stream_id].unread -= count
        self._unread -= count
        return not had_room and self.has_room()

    def let_go(self, stream_id: int) -> None:
        """See Core."""
        stream = self._streams[stream_id]
        self._unread -= stream.unread
        stream.unread, stream.let_go = 0, True
        self._free_if_over(stream_id, stream)

    def is_let_go(self, stream_id: int) -> bool:
        """See Core."""
        stream = self._streams.get(stream_id)
        return stream is None or stream.let_go

    def _can_send(self, stream_id: int) -> bool:
        return not self._broken and bool(self._quic.raw.can_send_stream(stream_id))

    def _free_if_over(self, stream_id: int, stream: _Stream) -> None:
        if stream.let_go and stream.finished:
            del self._streams[stream_id]
            if self._is_ours(stream_id):
                self._ours -= 1
            else:
                self._theirs -= 1

    def _is_ours(self, stream_id: int) -> bool:
        return (stream_id & 1 == 0) is self._is_client

    # -- what comes out of the Rust core

    def has_room(self) -> bool:
        """Whether another event may be taken out of it."""
        return (
            (self._unread < self._limits.connection_window and self._theirs < STREAMS_AHEAD * _PEER_STREAMS)
            or self._over  # nothing more comes in, and its end stands behind what waits
        )

    def take(self, event: NativeEvent) -> bool:
        """Deal with what is not TLS's business."""
        self._waiting = max(0, self._waiting - 1)
        match event:
            case ("stream_data", stream_id, data, fin):
                self._on_data(stream_id, data, fin)
            case ("stream_reset", stream_id, code, _):
                self._on_reset(stream_id, code)
            case ("stop_sending", stream_id, code):
                if self._stream(stream_id) is not None:
                    self._out.append(Stopped(stream_id, code))
            case ("stream_finished", stream_id):
                if (stream := self._streams.get(stream_id)) is not None:
                    stream.finished = True
                    self._free_if_over(stream_id, stream)
            case ("connection_id_issued", cid):
                self._out.append(CidIssued(cid))
            case ("connection_id_retired", cid):
                self._out.append(CidRetired(cid))
            case ("peer_closed", application, code, _, reason):
                self._ended(Termination("peer", code, reason.decode("utf-8", "replace"), application))
            case ("protocol_error", code, _, reason):
                self._ended(Termination("us", code, str(reason), False))
            case ("connection_terminated", code, _, reason):
                self._ended(Termination("silence", code, reason.decode("utf-8", "replace"), False))
            case ("crypto_data" | "handshake_done", *_):
                return False
        return True

    def _ended(self, end: Termination) -> None:
        if self._end is None and self._quic.failure is None:
            self._end = end

    def _stream(self, stream_id: int) -> _Stream | None:
        """The stream that an event is about, if the application wants to know of it."""
        if stream_id == _PROOF_STREAM:
            return None
        if not self._established and not self._stranger_speaks(stream_id):
            return None
        stream = self._streams.get(stream_id)
        if stream is None:
            if stream_id & _UNIDIRECTIONAL:
                self._fail(_STREAM_LIMIT_ERROR, "nobody listens to unidirectional streams here")
                return None
            stream = self._streams[stream_id] = _Stream()
            self._theirs += 1
        return None if stream.let_go else stream

    def _on_data(self, stream_id: int, data: bytes, fin: bool) -> None:
        if stream_id == _PROOF_STREAM:
            self._on_proof_data(data, fin)
        elif (stream := self._stream(stream_id)) is not None:
            stream.unread += len(data)
            stream.received_all = stream.received_all or fin
            self._unread += len(data)
            self._out.append(Data(stream_id, data, fin))
        elif fin and stream_id in self._streams:
            self._streams[stream_id].received_all = True

    def _on_reset(self, stream_id: int, code: int) -> None:
        stream = self._stream(stream_id)
        if stream is not None:
            stream.received_all = True
            self._unread -= stream.unread
            stream.unread = 0
            self._out.append(Reset(stream_id, code))

    # -- proofs

    def _stranger_speaks(self, stream_id: int) -> bool:
        """Something came on another stream than the proof's before we knew of the proof's acceptance. Returns whether it is
        to be listened to.
        """
        if self._prover is not None and self._prover.on_other_stream():
            self._established = True
            return True
        self._fail(_PROTOCOL_VIOLATION, "a stream before the proof of identity")
        return False

    def _fresh_nonce(self) -> bytes:
        return os.urandom(NONCE_BYTES)

    def _on_proof_data(self, data: bytes, fin: bool) -> None:
        if self._established or self._rejection is not None:
            return
        try:
            if self._prover is not None:
                self._say(self._prover.on_data(data))
                self._established = self._prover.accepted
            elif self._examiner is not None and self._speaks_alike():
                self._say(self._examiner.on_data(data, fin, self._quic.binding))
                self._verified, self._established = self._examiner.verified, self._examiner.accepted
        except PeerRejected as exc:
            self._refuse(exc)
        except ValueError as exc:
            self._fail(_PROTOCOL_VIOLATION, str(exc))

    def _say(self, message: bytes) -> None:
        if message:
            self._quic.raw.send_stream(_PROOF_STREAM, message, True)

    def _check_server(self, prover: Prover) -> None:
        """The client's look at the server's certificate, whose key TLS has just seen proven."""
        self._server_checked = True
        if not self._speaks_alike():
            return
        try:
            shown = self._quic.get_peercert()
            if shown is None or self._quic.get_issuercerts():
                raise PeerRejected("the server showed not one certificate, but none or more")
            certificate = load_certificate(shown.public_bytes())
            check_certificate(certificate)
            self._verified = ask_application(self._check, certificate)
        except PeerRejected as exc:
            self._refuse(exc)
            return
        self._say(prover.on_server(certificate, self._quic.binding))

    def _speaks_alike(self) -> bool:
        """Whether the peer has agreed on our protocol. qh3 minds what is said about it, but not that nothing is."""
        alike = self._quic.alpn == self._config.alpn and bool(self._quic.binding)
        if not alike:
            self._fail(_NO_APPLICATION_PROTOCOL, f"the peer does not speak {self._config.alpn}")
        return alike

    def _refuse(self, rejected: PeerRejected) -> None:
        self._rejection = rejected
        self._fail(_ACCESS_DENIED, rejected.reason)

    def _fail(self, code: int, reason: str) -> None:
        self._quic.close(error_code=code, frame_type=_FRAME_CRYPTO, reason_phrase=short_reason(reason))

    # -- driving

    def _take_in(self, data: bytes, address: Address, now: float) -> None:
        raw = self._quic.raw
        if self._established and raw is not None:
            self._waiting += raw.receive_datagram(data, address, now, len(data))[5]
            self._after()
        else:
            self._quic.receive_datagram(data, address, now)
            if self._prover is not None and not self._server_checked and self._quic.handshake_complete:
                self._check_server(self._prover)

    def _after(self) -> None:
        """Take out what a step has brought."""
        if not self.has_room() and self._quic.raw.state in _OVER:
            self._over = True
        self._quic.drain()

    def _transmit(self, now: float, out: list[Datagram]) -> None:
        self._quic.drain()
        raw = self._quic.raw
        while raw is not None:
            try:
                transmit = raw.poll_transmit(now)
            except RuntimeError:
                if self.address_proven:
                    raise
                return  # what is left to an unproven address is less than the next packet: qh3 calls that an error
            if transmit is None:
                return
            out.append((transmit[0], transmit[1][:2]))

    def _on_timer(self, now: float) -> None:
        self._quic.handle_timer(now)
        if self._quic.raw is not None:
            self._after()

    def _quietly(self, step: Callable[[], object]) -> None:
        """Do a step for somebody who cannot be told of a fault: the connection ends of it."""
        if not self._broken:
            with suppress(CoreFault):
                self._guarded(step)

    def _guarded(self, step: Callable[[], object]) -> None:
        """Do a step of qh3's. What goes wrong in it, a panic of the Rust code included, is a CoreFault."""
        try:
            step()
        except Exception as exc:
            raise self._break(exc) from exc
        except BaseException as exc:
            # A panic is no Exception, and must not end more than this connection.
            if type(exc).__module__ != "pyo3_runtime":
                raise
            raise self._break(exc) from exc

    def _break(self, exc: BaseException) -> CoreFault:
        self._broken = True
        self._ended(Termination("us", _INTERNAL_ERROR, f"the core fell over: {exc!r}", False))
        return CoreFault(f"the connection broke: {exc!r}")
