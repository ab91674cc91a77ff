"""Attacks on the proof of identity inside the channel: each is stopped by a part of what is signed, and by that part alone.

Mallory is a member like any other: her own certificate is accepted everywhere. What she wants is to be taken for
Alice. ``blind`` takes the channel's binding out of the game, so that it cannot stand in for what else is signed.
"""

from contextlib import asynccontextmanager

import pytest
import trio
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection
from aioquic.quic.events import ConnectionTerminated, StreamDataReceived
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding
from trio_quic_support import ALICE, ALPN, BOB, credentials, name_of, network

from trio_quic import (
    Credentials,
    HandshakeFailed,
    Limits,
    PeerRejected,
    make_certificate,
    native,
    native_quic,
    open_endpoint,
    proof,
)
from trio_quic.native import ALPN_SUFFIX, MAX_UNPROVEN, NativeCore
from trio_quic.proof import ACCEPTED, MAX_CERTIFICATE, NONCE_BYTES, Examiner, Prover, make_proof, signed_bytes

MALLORY = ("10.0.0.66", 4433)
ACCESS_DENIED = 0x100 + 49


@pytest.fixture
def blind(monkeypatch):
    monkeypatch.setattr(native_quic, "channel_binding", lambda secret: bytes(32))


class Door:
    """Bob, who notes whom he let in."""

    def __init__(self, net, core=NativeCore, own=None, **limits):
        self.own = own or credentials("bob")
        self.asked: list[str] = []
        self.let_in: list[str] = []
        self._net, self._core, self._limits = net, core, Limits(**limits)

    def verify(self, certificate):
        self.asked.append(name_of(certificate))
        return name_of(certificate)

    @asynccontextmanager
    async def opened(self):
        async with (
            open_endpoint(
                *BOB,
                credentials=self.own,
                alpn=ALPN,
                verify_peer=self.verify,
                socket=self._net.socket(*BOB),
                limits=self._limits,
                core=self._core,
            ) as bob,
            trio.open_nursery() as nursery,
        ):

            async def accept():
                while True:
                    connection = await bob.accept()
                    self.let_in.append(connection.peer)

            nursery.start_soon(accept)
            yield bob
            nursery.cancel_scope.cancel()


def alice_on(net, own, verify_peer=name_of):
    """An honest client's endpoint."""
    return open_endpoint(
        *ALICE,
        credentials=own,
        alpn=ALPN,
        verify_peer=verify_peer,
        socket=net.socket(*ALICE),
        core=NativeCore,
    )


class RawClient:
    """A client that does the proof by hand, over aioquic's bare connection: TLS asks nothing of it."""

    def __init__(self, net, address=MALLORY):
        self._socket = net.socket(*address)
        self.quic = QuicConnection(
            configuration=QuicConfiguration(
                alpn_protocols=[ALPN + ALPN_SUFFIX], is_client=True, verify_mode=0
            )
        )
        self.heard: dict[int, bytes] = {}
        self.ended: ConnectionTerminated | None = None

    async def connect(self):
        self.quic.connect(BOB, trio.current_time())
        await self.until(lambda: len(self.heard.get(1, b"")) >= NONCE_BYTES)

    @property
    def nonce(self) -> bytes:
        return self.heard[1][:NONCE_BYTES]

    def say(self, message: bytes, stream: int = 1, *, fin=True):
        self.quic.send_stream_data(stream, message, end_stream=fin)

    async def until(self, condition, seconds=5.0):
        """Pump until the condition holds or the connection ends."""
        with trio.move_on_after(seconds):
            while not condition() and self.ended is None:
                self._socket.send(self.quic.datagrams_to_send(trio.current_time()))
                with trio.move_on_at(self.quic.get_timer()):
                    for data, source in await self._socket.receive():
                        self.quic.receive_datagram(data, source, trio.current_time())
                self.quic.handle_timer(trio.current_time() + 1e-6)
                while (event := self.quic.next_event()) is not None:
                    if isinstance(event, StreamDataReceived):
                        self.heard[event.stream_id] = self.heard.get(event.stream_id, b"") + event.data
                    elif isinstance(event, ConnectionTerminated):
                        self.ended = event

    async def outcome(self) -> int | None:
        """None if Bob accepts, else the code with which he closes."""
        await self.until(lambda: self.heard.get(1, b"")[NONCE_BYTES:] == ACCEPTED)
        return None if self.ended is None else self.ended.error_code


class Snare(NativeCore):
    """Mallory's server: hands on another server's nonce, and keeps the proofs that she gets."""

    nonce = b""
    proofs: list[bytes]

    def _fresh_nonce(self):
        return self.nonce

    def _on_proof_data(self, data, fin):
        if not self._is_client and data:
            self.proofs.append(data)
        super()._on_proof_data(data, fin)


@asynccontextmanager
async def mallorys_server(net, nonce: bytes, own: Credentials):
    caught: list[bytes] = []
    snare = type("Snare", (Snare,), {"nonce": nonce, "proofs": caught})
    address = ("10.0.0.67", 4433)
    async with open_endpoint(
        *address, credentials=own, alpn=ALPN, verify_peer=name_of, socket=net.socket(*address), core=snare
    ):
        yield address, caught


async def proof_for(net, client: Credentials, nonce: bytes, own: Credentials) -> bytes:
    """Have a member connect to Mallory, as members do: what it signs for her, with a nonce of her choice."""
    async with (
        mallorys_server(net, nonce, own) as (address, caught),
        alice_on(net, client) as alice,
    ):
        await alice.connect(address)
    return b"".join(caught)


# -- honest people get in


async def test_the_raw_client_gets_in_with_its_own_proof(autojump_clock, blind):
    net, own = network(), credentials("mallory")
    door = Door(net)
    async with door.opened():
        mallory = RawClient(net)
        await mallory.connect()
        mallory.say(make_proof(own, door.own.certificate, mallory.nonce, bytes(32)))
        assert await mallory.outcome() is None
        assert (door.asked, door.let_in) == (["mallory"], ["mallory"])


# -- attacks


async def test_a_member_in_the_middle_cannot_forward_the_proof_to_another_server(autojump_clock, blind):
    """Mallory ends Alice's TLS at herself, and forwards: Bob's nonce to Alice, Alice's proof to Bob."""
    net, alice = network(), credentials("alice")
    door = Door(net)
    async with door.opened():
        mallory = RawClient(net)
        await mallory.connect()
        mallory.say(await proof_for(net, alice, mallory.nonce, credentials("mallory")))
        assert await mallory.outcome() == ACCESS_DENIED
        assert (door.asked, door.let_in) == ([], [])


async def test_who_stole_the_servers_key_cannot_be_somebody_else_to_that_server(autojump_clock):
    """With Bob's key Mallory is Bob to Alice. What Alice signs for that channel is good for no other: its binding."""
    net, alice = network(), credentials("alice")
    door = Door(net)
    async with door.opened():
        mallory = RawClient(net)
        await mallory.connect()
        mallory.say(await proof_for(net, alice, mallory.nonce, door.own))
        assert await mallory.outcome() == ACCESS_DENIED
        assert (door.asked, door.let_in) == ([], [])


async def test_without_the_binding_who_stole_the_servers_key_could(autojump_clock, blind):
    """The control of the test before: it is the binding that stops her."""
    net, alice = network(), credentials("alice")
    door = Door(net)
    async with door.opened():
        mallory = RawClient(net)
        await mallory.connect()
        mallory.say(await proof_for(net, alice, mallory.nonce, door.own))
        assert await mallory.outcome() is None


async def test_a_proof_cannot_be_replayed(autojump_clock, blind):
    net, alice = network(), credentials("alice")
    door = Door(net)
    async with door.opened():
        first = RawClient(net)
        await first.connect()
        heard = make_proof(alice, door.own.certificate, first.nonce, bytes(32))
        first.say(heard)
        assert await first.outcome() is None
        second = RawClient(net, ("10.0.0.68", 1))
        await second.connect()
        assert second.nonce != first.nonce
        second.say(heard)
        assert await second.outcome() == ACCESS_DENIED
        assert door.let_in == ["alice"]


async def test_a_nonce_that_comes_again_does_not_make_a_proof_good_again(autojump_clock, monkeypatch):
    """A server whose random source fails gives the same nonce twice: the binding still tells the channels apart."""
    net, alice = network(), credentials("alice")
    monkeypatch.setattr(NativeCore, "_fresh_nonce", lambda self: bytes(NONCE_BYTES))
    door = Door(net)
    async with door.opened():
        heard = await proof_for(net, alice, bytes(NONCE_BYTES), door.own)
        mallory = RawClient(net)
        await mallory.connect()
        mallory.say(heard)
        assert await mallory.outcome() == ACCESS_DENIED


async def test_a_server_is_not_shown_its_own_proof(autojump_clock, blind):
    """Reflection: Bob connects to Mallory, and she hands what he signs back to him."""
    net = network()
    door = Door(net)
    async with door.opened():
        mallory = RawClient(net)
        await mallory.connect()
        mallory.say(await proof_for(net, door.own, mallory.nonce, credentials("mallory")))
        assert await mallory.outcome() == ACCESS_DENIED
        assert (door.asked, door.let_in) == ([], [])


async def test_a_proof_is_good_for_the_certificate_shown_with_it(autojump_clock, blind):
    """Another certificate of the same key: an older membership, say, with more rights."""
    net, key = network(), Ed25519PrivateKey.generate()
    own = Credentials(make_certificate(key, common_name="alice"), key)
    other = Credentials(make_certificate(key, common_name="alice the great"), key)
    door = Door(net)
    async with door.opened():
        mallory = RawClient(net)
        await mallory.connect()
        signature = make_proof(own, door.own.certificate, mallory.nonce, bytes(32))[-64:]
        shown = other.certificate.public_bytes(Encoding.DER)
        mallory.say(len(shown).to_bytes(2, "big") + shown + signature)
        assert await mallory.outcome() == ACCESS_DENIED
        assert (door.asked, door.let_in) == ([], [])


async def test_a_signature_by_another_key_proves_nothing(autojump_clock, blind):
    net, alice, own = network(), credentials("alice"), credentials("mallory")
    door = Door(net)
    async with door.opened():
        mallory = RawClient(net)
        await mallory.connect()
        signed = signed_bytes(door.own.certificate, alice.certificate, mallory.nonce, bytes(32))
        shown = alice.certificate.public_bytes(Encoding.DER)
        mallory.say(len(shown).to_bytes(2, "big") + shown + own.private_key.sign(signed))
        assert await mallory.outcome() == ACCESS_DENIED
        assert (door.asked, door.let_in) == ([], [])


@pytest.mark.parametrize(
    "message",
    [b"", b"\x00\x00" + bytes(64), b"\x00\x05hello" + bytes(64), b"\xff\xff", bytes(3), b"\x01\x00" * 200],
)
async def test_no_proof_at_all(autojump_clock, message):
    net = network()
    door = Door(net)
    async with door.opened() as bob:
        mallory = RawClient(net)
        await mallory.connect()
        mallory.say(message)
        assert await mallory.outcome() == ACCESS_DENIED
        assert (door.asked, door.let_in, bob.connections) == ([], [], 0)


async def test_a_proof_that_does_not_end_is_refused(autojump_clock):
    net = network()
    door = Door(net)
    async with door.opened():
        mallory = RawClient(net)
        await mallory.connect()
        mallory.say(bytes(MAX_CERTIFICATE + 1000), fin=False)
        assert await mallory.outcome() == ACCESS_DENIED


@pytest.mark.parametrize("stream", [0, 2])
async def test_a_stream_before_the_proof_ends_the_connection(autojump_clock, stream):
    net = network()
    door = Door(net)
    async with door.opened() as bob:
        mallory = RawClient(net)
        await mallory.connect()
        mallory.say(b"let me in", stream)
        await mallory.until(lambda: False)
        assert mallory.ended is not None
        assert mallory.ended.error_code == 0x0A
        assert (door.asked, door.let_in, bob.connections) == ([], [], 0)


async def test_without_a_proof_the_wait_is_bounded(autojump_clock):
    net = network()
    door = Door(net, handshake_timeout=3.0)
    async with door.opened() as bob:
        mallory = RawClient(net)
        await mallory.connect()
        assert bob.connections == 1
        start = trio.current_time()
        await mallory.until(lambda: False, 30)
        assert mallory.ended is not None
        assert trio.current_time() - start < 4
        assert (door.let_in, bob.connections) == ([], 0)


async def test_without_a_proof_what_is_taken_in_is_bounded(autojump_clock):
    """TLS data with a gap, as much as the client likes: the core would keep half a megabyte of it, byte by byte."""
    net = network()
    door = Door(net)
    async with door.opened() as bob:
        mallory = RawClient(net)
        await mallory.connect()
        for _ in range(2 * MAX_UNPROVEN // 1000):
            mallory.quic.send_ping(1)
            datagrams = mallory.quic.datagrams_to_send(trio.current_time())
            for data, address in datagrams or [(b"\x40" + bytes(1100), BOB)]:
                net.carry(data[:9] + bytes(1100), MALLORY, address)
                net.carry(mallory_addressed(bob, 1100), MALLORY, address)
        await trio.sleep(0.1)
        assert bob.connections == 0
        assert door.let_in == []


def mallory_addressed(bob, size: int) -> bytes:
    """A datagram for the one connection that Bob has, or for none."""
    cid = next(iter(bob._routes), bytes(8))
    return b"\x40" + cid + bytes(size)


async def test_a_client_says_nothing_to_a_server_that_it_does_not_trust(autojump_clock, monkeypatch):
    """Whoever answers in Bob's place learns neither a signature nor who asked."""
    net = network()
    made = []

    def note(*args):
        made.append(args)
        return make_proof(*args)

    def only_bob(certificate):
        if name_of(certificate) != "bob":
            raise PeerRejected(f"bob was expected, not {name_of(certificate)}")

    monkeypatch.setattr(proof, "make_proof", note)
    door = Door(net, own=credentials("mallory"))
    async with (
        door.opened(),
        alice_on(net, credentials("alice"), only_bob) as alice,
    ):
        with pytest.raises(PeerRejected, match="bob was expected") as caught:
            await alice.connect(BOB)
        assert not caught.value.by_remote
        await trio.sleep(1)
        assert (made, door.asked, door.let_in) == ([], [], [])


async def test_a_server_has_to_have_the_key_of_the_certificate_that_it_shows(autojump_clock):
    net = network()
    own = credentials("bob")
    object.__setattr__(own, "private_key", credentials("mallory").private_key)
    door = Door(net, own=own)
    async with (
        door.opened(),
        alice_on(net, credentials("alice")) as alice,
    ):
        with pytest.raises(HandshakeFailed):
            await alice.connect(BOB)
        assert door.asked == []


async def test_data_that_overtakes_the_acceptance_is_not_lost(autojump_clock):
    """The server may speak as soon as it has accepted the client; the datagram with its acceptance gets lost."""
    net = network()
    dropped = []

    class Rival(NativeCore):
        def _on_proof_data(self, data, fin):
            before = self._established
            super()._on_proof_data(data, fin)
            if not self._is_client and self._established and not before:
                net.tap = drop_one

    def drop_one(data, source, destination):
        if source == BOB and not dropped:
            dropped.append(data)
            return None
        return data

    async with (
        open_endpoint(
            *BOB,
            credentials=credentials("bob"),
            alpn=ALPN,
            verify_peer=name_of,
            socket=net.socket(*BOB),
            core=Rival,
        ) as bob,
        alice_on(net, credentials("alice")) as alice,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(alice.connect, BOB)
        theirs = await bob.accept()
        await trio.sleep(0.001)
        stream = await theirs.open_stream()
        await stream.send_last(b"hello")
        ours = next(iter(alice._cids))
        with trio.fail_after(0.2):
            incoming = await (await accepted(ours)).accept_stream()
            assert await incoming.receive_all(10) == b"hello"
        assert len(dropped) == 1


async def accepted(connection):
    await connection.settled.wait()
    assert connection.ready
    return connection


# -- the two machines alone


def pair(nonce=b"n" * NONCE_BYTES):
    bob, alice = credentials("bob"), credentials("alice")
    return Prover(alice), Examiner(bob.certificate, name_of, nonce), bob, nonce


@pytest.mark.parametrize("early", [False, True])
@pytest.mark.parametrize("size", [1, 7, 10_000])
def test_in_pieces_and_in_either_order(early, size):
    prover, examiner, bob, nonce = pair()
    sent = b"" if early else prover.on_server(bob.certificate, b"b" * 32)
    for start in range(0, NONCE_BYTES, size):
        assert not prover.sent
        sent += prover.on_data(nonce[start : start + size])
    if early:
        assert not sent
        sent = prover.on_server(bob.certificate, b"b" * 32)
    assert prover.sent
    assert not prover.accepted
    for start in range(0, len(sent), size):
        assert examiner.on_data(sent[start : start + size], False, b"b" * 32) == b""
    assert examiner.on_data(b"", True, b"b" * 32) == ACCEPTED
    assert (examiner.accepted, examiner.verified) == (True, "alice")
    prover.on_data(ACCEPTED)
    assert prover.accepted


@pytest.mark.parametrize("word", [b"\x00", b"\x02", b"\x01\x01", bytes(40)])
def test_a_server_that_says_something_else(word):
    prover, _, bob, nonce = pair()
    prover.on_server(bob.certificate, b"b" * 32)
    with pytest.raises(ValueError, match="nonce"):
        prover.on_data(nonce + word)


def test_no_acceptance_before_the_proof():
    prover, _, _, nonce = pair()
    with pytest.raises(ValueError, match="nonce"):
        prover.on_data(nonce + ACCEPTED)
    assert not prover.on_other_stream()


def test_every_part_is_signed():
    _, _, bob, nonce = pair()
    alice, eve = credentials("alice"), credentials("eve")
    good = signed_bytes(bob.certificate, alice.certificate, nonce, b"b" * 32)
    others = [
        signed_bytes(eve.certificate, alice.certificate, nonce, b"b" * 32),
        signed_bytes(bob.certificate, eve.certificate, nonce, b"b" * 32),
        signed_bytes(bob.certificate, alice.certificate, b"m" * NONCE_BYTES, b"b" * 32),
        signed_bytes(bob.certificate, alice.certificate, nonce, b"c" * 32),
        signed_bytes(alice.certificate, bob.certificate, nonce, b"b" * 32),
    ]
    assert len({good, *others}) == 6
    assert {len(it) for it in (good, *others)} == {len(good)}
    assert good.startswith(b"trio_quic client proof 1\x00")


def test_a_certificate_that_fits_no_proof_is_named():
    key = Ed25519PrivateKey.generate()
    certificate = make_certificate(key, common_name="x", extensions={"2.25.1": bytes(MAX_CERTIFICATE)})
    with pytest.raises(ValueError, match="more than"):
        make_proof(Credentials(certificate, key), certificate, b"n" * 32, b"b" * 32)


def test_the_constants_fit_together():
    assert proof.MAX_PROOF < MAX_UNPROVEN / 2
    assert native.MAX_UNPROVEN == MAX_UNPROVEN
