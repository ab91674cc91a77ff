"""aioquic's habits that we do not share, each seen to be gone.

Others of them are tested where they show: the identity rules in test_tls, limits by consumption in test_stream, slots of
streams in test_connection, handshake data in test_endpoint, reset tokens and connection ids in test_hostile.
"""

import trio
from aioquic.quic.packet import QuicPreferredAddress
from trio_quic_support import ALICE, BOB, connected, endpoint_on, network, read_all, stream_pair

from trio_quic import Limits
from trio_quic.hardened import MAX_GAPS


async def test_a_stream_in_thousands_of_pieces_with_gaps_ends_the_connection(autojump_clock):
    async with connected(network()) as (ours, theirs):
        mine, _ = await stream_pair(ours, theirs)
        sender = ours._core._quic._streams[mine.id].sender
        sender.write(bytes(4 * MAX_GAPS + 8))
        for start in range(3, 4 * MAX_GAPS, 2):  # every other byte is withheld
            sender._pending.subtract(start, start + 1)
        sender._pending.subtract(1, 2)
        ours._core._quic.activate(ours._core._quic._streams[mine.id])
        ours.wake()
        with trio.fail_after(60):
            await theirs.closed.wait()
        assert "gaps" in str(theirs.close_error)


async def test_hundreds_of_gaps_are_a_bad_day_and_no_attack(autojump_clock):
    async with connected(network(loss=0.3)) as (ours, theirs), trio.open_nursery() as nursery:
        mine, other = await stream_pair(ours, theirs)

        async def send():
            await mine.send_last(bytes(200_000))

        nursery.start_soon(send)
        assert len(await read_all(other)) == 200_000


async def test_a_server_cannot_send_us_to_another_address(autojump_clock):
    net = network()
    async with endpoint_on(net, ALICE) as alice, endpoint_on(net, BOB) as bob:
        ours = await alice.connect(BOB)
        await bob.accept()
        victim = QuicPreferredAddress(
            ipv4_address=("10.0.0.99", 53),
            ipv6_address=None,
            connection_id=b"12345678",
            stateless_reset_token=bytes(16),
        )
        ours._core._quic._remote_preferred_address = victim
        targets = []

        def watch(data, source, destination):
            targets.append(destination)
            return data

        net.tap = watch
        ours._core.ping()
        ours.wake()
        await trio.sleep(5)
        assert targets
        assert ("10.0.0.99", 53) not in targets


async def test_credit_is_what_was_consumed_and_no_more_whatever_arrives(autojump_clock):
    limits = Limits(stream_window=64 * 1024, connection_window=256 * 1024, max_streams=4)
    async with connected(network(), limits=limits) as (ours, theirs), trio.open_nursery() as nursery:
        mine, other = await stream_pair(ours, theirs)
        nursery.start_soon(mine.send_all, bytes(400_000))
        await trio.sleep(5)
        quic = theirs._core._quic
        stream = quic._streams[other.id]
        assert stream.max_stream_data_local == limits.first_window
        assert quic._local_max_data.value == limits.connection_window
        consumed = 1
        while consumed < 300_000:
            consumed += len(await other.receive_some(40_000))
            assert stream.max_stream_data_local <= consumed + limits.stream_window
            await trio.sleep(1)
            assert stream.receiver.highest_offset - consumed <= limits.stream_window
        assert (
            stream.max_stream_data_local > consumed + limits.stream_window // 2
        )  # it has got its full window
        assert quic._local_max_data.value <= consumed + limits.connection_window
        nursery.cancel_scope.cancel()
