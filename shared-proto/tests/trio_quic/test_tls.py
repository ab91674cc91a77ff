"""Nobody gets in without a proven Ed25519 identity that the application accepts; on both sides."""

import datetime

import pytest
import trio
from aioquic import tls
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection
from aioquic.quic.events import ConnectionTerminated
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import NameOID
from trio_quic_support import ALICE, ALPN, BOB, endpoint_on, name_of, network

from trio_quic import Credentials, HandshakeFailed, PeerRejected, make_certificate
from trio_quic.tls import check_certificate

EVE = ("10.0.0.66", 4433)
NAME = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "eve")])


def certificate_of(key, signed_by=None):
    """A certificate for any kind of key, signed by itself or by another key."""
    signer = signed_by or key
    algorithm = None if isinstance(signer, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    start = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
    return (
        x509.CertificateBuilder(subject_name=NAME, issuer_name=NAME)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(start)
        .not_valid_after(start + datetime.timedelta(days=20_000))
        .sign(signer, algorithm)
    )


class RawPeer:
    """A bare aioquic client, to do what ours never would."""

    def __init__(self, certificate=None, key=None, chain=(), alpn=ALPN, change=lambda context: None):
        configuration = QuicConfiguration(
            alpn_protocols=[alpn], is_client=True, verify_mode=0, certificate=certificate, private_key=key
        )
        configuration.certificate_chain = list(chain)
        self.quic = QuicConnection(configuration=configuration)
        initialize = self.quic._initialize

        def initialize_and_change(peer_cid):
            initialize(peer_cid)
            change(self.quic.tls)

        self.quic._initialize = initialize_and_change

    async def run(self, net, until=lambda quic: False, seconds=5.0):
        """Talk to Bob, with a stream's data as early as possible; returns how the connection was ended."""
        socket = net.socket(*EVE)
        self.quic.connect(BOB, trio.current_time())
        sent = False
        with trio.move_on_after(seconds):
            while not until(self.quic):
                socket.send(self.quic.datagrams_to_send(trio.current_time()))
                with trio.move_on_at(self.quic.get_timer()):
                    for data, source in await socket.receive():
                        self.quic.receive_datagram(data, source, trio.current_time())
                self.quic.handle_timer(trio.current_time() + 1e-6)
                if self.quic._handshake_complete and not sent:
                    sent = True
                    self.quic.send_stream_data(0, b"let me in", end_stream=True)
                while (event := self.quic.next_event()) is not None:
                    if isinstance(event, ConnectionTerminated):
                        return event
        return None


async def refused(peer: RawPeer) -> ConnectionTerminated:
    """Let a raw client try Bob's door; nothing of it may come to Bob's application."""
    net = network()
    seen = []

    def verify(certificate):
        seen.append(certificate)
        return name_of(certificate)

    async with endpoint_on(net, BOB, verify_peer=verify) as bob, trio.open_nursery() as nursery:

        async def accept():
            raise AssertionError(f"accepted {await bob.accept()}")

        nursery.start_soon(accept)
        ended = await peer.run(net)
        await trio.sleep(1)
        assert bob.connections == 0
        assert seen == []
        nursery.cancel_scope.cancel()
    assert ended is not None
    return ended


def alert(ended: ConnectionTerminated) -> tls.AlertDescription:
    return tls.AlertDescription(ended.error_code - 0x100)


def good():
    key = ed25519.Ed25519PrivateKey.generate()
    return certificate_of(key), key


async def test_the_raw_client_gets_in_when_it_is_honest(autojump_clock):
    """The control: the refusals below are for what each client does wrong, not for being aioquic."""
    net = network()
    async with endpoint_on(net, BOB) as bob, trio.open_nursery() as nursery:
        nursery.start_soon(RawPeer(*good()).run, net)
        connection = await bob.accept()
        assert connection.peer == "eve"
        stream = await connection.accept_stream()
        assert await stream.receive_some() == b"let me in"
        nursery.cancel_scope.cancel()


async def test_no_certificate(autojump_clock):
    ended = await refused(RawPeer())
    assert alert(ended) is tls.AlertDescription.certificate_required


@pytest.mark.parametrize("kind", ["rsa", "ecdsa"])
async def test_another_kind_of_key_by_its_own_choice(autojump_clock, kind):
    """An honest client with such a key finds no algorithm in our request and shows nothing."""
    key = rsa.generate_private_key(65537, 2048) if kind == "rsa" else ec.generate_private_key(ec.SECP256R1())
    ended = await refused(RawPeer(certificate_of(key), key))
    assert alert(ended) is tls.AlertDescription.certificate_required


@pytest.mark.parametrize("kind", ["rsa", "ecdsa"])
async def test_another_kind_of_key_forced_on_us(autojump_clock, kind):
    if kind == "rsa":
        key, algorithm = rsa.generate_private_key(65537, 2048), tls.SignatureAlgorithm.RSA_PSS_RSAE_SHA256
    else:
        key, algorithm = (
            ec.generate_private_key(ec.SECP256R1()),
            tls.SignatureAlgorithm.ECDSA_SECP256R1_SHA256,
        )

    def force(context):
        respond = context._client_handle_certificate_request

        def pretend(buf):
            respond(buf)
            context._certificate_request.signature_algorithms = [algorithm]

        context._client_handle_certificate_request = pretend

    ended = await refused(RawPeer(certificate_of(key), key, change=force))
    assert alert(ended) is tls.AlertDescription.bad_certificate


async def test_a_certificate_signed_by_another_key(autojump_clock):
    key = ed25519.Ed25519PrivateKey.generate()
    other = ed25519.Ed25519PrivateKey.generate()
    ended = await refused(RawPeer(certificate_of(key, signed_by=other), key))
    assert alert(ended) is tls.AlertDescription.bad_certificate


async def test_an_ed25519_certificate_signed_with_rsa(autojump_clock):
    key = ed25519.Ed25519PrivateKey.generate()
    ended = await refused(RawPeer(certificate_of(key, rsa.generate_private_key(65537, 2048)), key))
    assert alert(ended) is tls.AlertDescription.bad_certificate


async def test_somebody_elses_certificate(autojump_clock):
    """The certificate is good, but the key that signs CertificateVerify is another."""
    certificate, _ = good()
    ended = await refused(RawPeer(certificate, ed25519.Ed25519PrivateKey.generate()))
    assert alert(ended) is tls.AlertDescription.decrypt_error


async def test_a_chain(autojump_clock):
    certificate, key = good()
    ended = await refused(RawPeer(certificate, key, chain=[good()[0]]))
    assert alert(ended) is tls.AlertDescription.bad_certificate


async def test_a_certificate_without_proof(autojump_clock, monkeypatch):
    """The client goes from Certificate to Finished and skips CertificateVerify."""
    skipped = []

    def skip(buf, verify):
        skipped.append(verify)

    certificate, key = good()

    def change(context):
        finish = context._client_handle_finished

        def finish_without_proof(input_buf, output_buf):
            with monkeypatch.context() as patch:
                patch.setattr(tls, "push_certificate_verify", skip)
                finish(input_buf, output_buf)

        context._client_handle_finished = finish_without_proof

    ended = await refused(RawPeer(certificate, key, change=change))
    assert skipped
    assert alert(ended) is tls.AlertDescription.unexpected_message


async def test_garbage_instead_of_a_certificate(autojump_clock):
    _, key = good()

    class Garbage:
        def public_bytes(self, encoding):
            return b"\x30\x03garbage"

    ended = await refused(RawPeer(Garbage(), key))
    assert alert(ended) is tls.AlertDescription.bad_certificate


async def test_another_protocol(autojump_clock):
    ended = await refused(RawPeer(*good(), alpn="other/1"))
    assert alert(ended) is tls.AlertDescription.no_application_protocol


async def test_our_client_says_so_when_protocols_differ(autojump_clock):
    net = network()
    async with endpoint_on(net, ALICE, alpn="a/1") as alice, endpoint_on(net, BOB, alpn="b/1"):
        with pytest.raises(HandshakeFailed, match="alert 120"):
            await alice.connect(BOB)


async def test_no_tickets_and_no_early_data(autojump_clock):
    net = network()
    peer = RawPeer(*good())
    tickets = []
    peer.quic._session_ticket_handler = tickets.append
    async with endpoint_on(net, BOB):
        await peer.run(net, seconds=3)
    assert peer.quic._handshake_confirmed
    assert tickets == []
    assert not peer.quic.tls.early_data_accepted


def refuse_all(certificate):
    raise PeerRejected("not on my list")


async def test_a_refused_client_hears_it_from_connect(autojump_clock):
    net = network()
    async with endpoint_on(net, ALICE) as alice, endpoint_on(net, BOB, verify_peer=refuse_all) as bob:
        with pytest.raises(PeerRejected, match="not on my list") as caught:
            await alice.connect(BOB)
        assert caught.value.by_remote
        assert alice.connections == bob.connections == 0


async def test_a_client_refuses_a_server(autojump_clock):
    net = network()
    async with endpoint_on(net, ALICE) as alice, endpoint_on(net, BOB) as bob, trio.open_nursery() as nursery:

        async def accept():
            raise AssertionError(f"accepted {await bob.accept()}")

        nursery.start_soon(accept)
        with pytest.raises(PeerRejected, match="not on my list") as caught:
            await alice.connect(BOB, verify_peer=refuse_all)
        assert not caught.value.by_remote
        await trio.sleep(1)
        assert bob.connections == 0
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("error", [ValueError("no such member"), RuntimeError("a bug")])
async def test_any_error_of_the_callback_refuses_and_harms_nobody_else(autojump_clock, error):
    net = network()

    def verify(certificate):
        if name_of(certificate) == "mallory":
            raise error
        return name_of(certificate)

    async with (
        endpoint_on(net, ALICE, "alice") as alice,
        endpoint_on(net, EVE, "mallory") as mallory,
        endpoint_on(net, BOB, verify_peer=verify) as bob,
    ):
        with pytest.raises(HandshakeFailed):
            await mallory.connect(BOB)
        await alice.connect(BOB)
        assert (await bob.accept()).peer == "alice"


async def test_the_refused_client_is_told_even_when_the_first_farewell_is_lost(autojump_clock):
    net = network(seed=3, loss=0.3)
    async with endpoint_on(net, ALICE) as alice, endpoint_on(net, BOB, verify_peer=refuse_all):
        for _ in range(10):
            with pytest.raises(HandshakeFailed):
                await alice.connect(BOB)


def test_an_rsa_key_signed_by_somebodys_ed25519_key():
    key = rsa.generate_private_key(65537, 2048)
    with pytest.raises(PeerRejected, match="key is not Ed25519"):
        check_certificate(certificate_of(key, signed_by=ed25519.Ed25519PrivateKey.generate()))


def test_credentials_refuse_what_peers_would_refuse():
    certificate, key = good()
    with pytest.raises(ValueError, match="not for this private key"):
        Credentials(certificate, ed25519.Ed25519PrivateKey.generate())
    foreign = certificate_of(key, signed_by=ed25519.Ed25519PrivateKey.generate())
    with pytest.raises(PeerRejected, match="not signed by its own key"):
        Credentials(foreign, key)
    assert "rivate" not in repr(Credentials(certificate, key))


def test_make_certificate_carries_names_and_extensions():
    key = ed25519.Ed25519PrivateKey.generate()
    made = make_certificate(
        key, common_name="n", uri_names=["magnet:x"], extensions={"1.3.6.1.4.1.99999.1": b"\x05"}
    )
    Credentials(made, key)
    names = made.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == ["magnet:x"]
    own = made.extensions.get_extension_for_oid(x509.ObjectIdentifier("1.3.6.1.4.1.99999.1"))
    assert own.value.value == b"\x05"
