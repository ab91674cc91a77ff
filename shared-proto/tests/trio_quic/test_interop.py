"""aioquic's own asyncio client and server, in a thread, talk with our endpoint over loopback."""

import asyncio  # noqa: TID251
import ssl

import trio
from aioquic.asyncio import connect, serve
from aioquic.quic.configuration import QuicConfiguration
from trio_quic_support import ALPN, ask, credentials, name_of, serve_echo

from trio_quic import open_endpoint


def configuration(name: str, *, is_client: bool) -> QuicConfiguration:
    own = credentials(name)
    return QuicConfiguration(
        alpn_protocols=[ALPN],
        is_client=is_client,
        verify_mode=ssl.CERT_NONE,
        certificate=own.certificate,
        private_key=own.private_key,
    )


async def test_their_client():
    async def client(port: int) -> bytes:
        async with connect(
            "127.0.0.1", port, configuration=configuration("them", is_client=True)
        ) as protocol:
            reader, writer = await protocol.create_stream()
            writer.write(b"x" * 100_000)
            writer.write_eof()
            return await reader.read()

    us = open_endpoint("127.0.0.1", 0, credentials=credentials("us"), alpn=ALPN, verify_peer=name_of)
    async with us as endpoint, trio.open_nursery() as nursery:
        nursery.start_soon(serve_echo, endpoint)
        with trio.fail_after(30):
            answer = await trio.to_thread.run_sync(lambda: asyncio.run(client(endpoint.local_address[1])))
        assert answer == b"x" * 100_000
        nursery.cancel_scope.cancel()


async def test_their_server():
    send, receive = trio.open_memory_channel[int](1)

    async def server() -> None:
        loop = asyncio.get_running_loop()
        over = asyncio.Event()
        handlers = set()

        async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(await reader.read())
            writer.write_eof()

        def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            handlers.add(loop.create_task(echo(reader, writer)))

        quic = await serve(
            "127.0.0.1", 0, configuration=configuration("them", is_client=False), stream_handler=handle
        )
        port = quic._transport.get_extra_info("sockname")[1]
        trio.from_thread.run_sync(send.send_nowait, port)
        trio.from_thread.run_sync(stoppers.append, lambda: loop.call_soon_threadsafe(over.set))
        await over.wait()
        quic.close()

    stoppers: list = []
    us = open_endpoint("127.0.0.1", 0, credentials=credentials("us"), alpn=ALPN, verify_peer=name_of)
    async with us as endpoint, trio.open_nursery() as nursery:
        nursery.start_soon(trio.to_thread.run_sync, lambda: asyncio.run(server()))
        with trio.fail_after(30):
            port = await receive.receive()
            connection = await endpoint.connect(("127.0.0.1", port))
            assert connection.peer == "them"
            assert await ask(connection, b"y" * 100_000) == b"y" * 100_000
            await connection.aclose()
            stoppers[0]()
