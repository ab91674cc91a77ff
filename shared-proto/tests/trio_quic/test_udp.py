"""Real UDP sockets: datagrams arrive one by one, as they were given, whoever cuts them."""

import errno
import random

import pytest
import trio

from trio_quic.udp import UdpSocket, open_udp_socket


async def collect(socket: UdpSocket, count: int) -> list[bytes]:
    got: list[bytes] = []
    with trio.move_on_after(5):
        while len(got) < count:
            got += [data for data, _ in await socket.receive()]
    return got


class Refusing:
    """A socket whose kernel refuses to cut."""

    def __init__(self, socket, code):
        self._socket, self._code, self.asked = socket, code, 0

    def __getattr__(self, name):
        return getattr(self._socket, name)

    def sendmsg(self, *_):
        self.asked += 1
        raise OSError(self._code, "no")


@pytest.fixture(params=["127.0.0.1", "::1"])
async def sockets(request):
    try:
        pair = [open_udp_socket(request.param, 0, 1 << 20) for _ in range(3)]
    except OSError:
        pytest.skip(f"no {request.param} here")
    yield pair
    for socket in pair:
        socket.close()


async def test_batches_of_all_sizes_arrive_whole_and_in_order(sockets):
    one, two, three = sockets
    source = random.Random(5)
    sizes = [1200] * 60 + [700] + [1200] * 5 + [40, 41, 40, 1, 1200, 1200, 1200] + [9000] * 10
    sent = [
        (source.randbytes(size), (two if number % 17 else three).address) for number, size in enumerate(sizes)
    ]
    one.send(sent)
    for socket in (two, three):
        expected = [data for data, address in sent if address == socket.address]
        assert await collect(socket, len(expected)) == expected


@pytest.mark.parametrize(("code", "asked"), [(errno.EIO, 1), (errno.EMSGSIZE, 2)])
async def test_where_the_kernel_cannot_cut_each_is_sent(sockets, code, asked):
    """It is not asked again, save where one path's size was all that was wrong."""
    one, two, _ = sockets
    refusing = one._socket = Refusing(one._socket, code)
    for _ in range(2):
        one.send([(b"%d" % number, two.address) for number in range(8)])
        assert await collect(two, 8) == [b"%d" % number for number in range(8)]
    assert refusing.asked == asked


async def test_a_full_buffer_loses_datagrams_and_nothing_else(sockets):
    one, two, _ = sockets
    refusing = one._socket = Refusing(one._socket, errno.EAGAIN)
    one.send([(b"lost", two.address)] * 8)
    one.send([(b"lost", two.address)] * 8)
    assert refusing.asked == 2
    one.send([(b"sent", two.address)])
    assert await collect(two, 1) == [b"sent"]
