"""A replica in a process of its own, to be killed: `python pod_process.py SEED CLIENT_ID CLIENT_PORT SERVICE PORT`.

Says its peer id, its UDP port and its app's port in one line, and serves HTTP with keep-alive.
"""

import sys
from contextlib import suppress

import trio
from traffic_support import Machine, pod, serving

from magik_proto.identity import BootstrapPeer, PeerId

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


async def answer(stream: trio.SocketStream) -> None:
    buffer = b""
    with suppress(trio.BrokenResourceError):  # a client that gave up
        async for chunk in stream:
            buffer += bytes(chunk)
            while b"\r\n\r\n" in buffer:
                _, _, buffer = buffer.partition(b"\r\n\r\n")
                await stream.send_all(ANSWER)


async def main(seed: str, peer: str, client_port: str, service: str, port: str) -> None:
    machine = Machine()
    machine.serve(service, int(port), workloads=("default/Deployment/web",))
    client = (BootstrapPeer(PeerId.parse(peer), "127.0.0.1", int(client_port)),)
    async with (
        serving(answer) as app,
        pod(machine, int(seed), "web", bootstrap=client, ports={"app": app}) as made,
    ):
        print(made.node.id, made.node.address[1], app, flush=True)
        await trio.sleep_forever()


if __name__ == "__main__":
    trio.run(main, *sys.argv[1:])
