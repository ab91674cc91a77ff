"""aioquic's sans-IO core without anything around it: the ceiling of what is built on it."""

import socket
import time

import quic
from aioquic.quic import events
from aioquic.quic.connection import QuicConnection


def measure(count: int, flights: tuple[int, ...]) -> dict[str, float]:
    """Echoes between two stock cores in memory, with system calls added by the datagram."""
    out: dict[str, float] = {}
    cost = syscall_seconds()
    for flight in flights:
        start = time.process_time()
        datagrams = pump_echoes(flight, count)
        seconds = time.process_time() - start + datagrams * cost
        out |= {f"calls_{flight}": count / seconds, f"datagrams_{flight}": datagrams / count}
    return out


def syscall_seconds() -> float:
    """What it costs to send and to receive one datagram of 250 bytes over loopback."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        one.bind(("127.0.0.1", 0))
        address, rounds, start = one.getsockname(), 5000, time.process_time()
        for _ in range(rounds):
            one.sendto(bytes(250), address)
            one.recvfrom(65536)
    return (time.process_time() - start) / rounds


def pump_echoes(flight: int, count: int) -> int:
    """Echo on ``count`` streams, ``flight`` at a time; returns the datagrams that it took. Time is half a millisecond a
    round.
    """
    client = QuicConnection(configuration=quic.asyncio_configuration("a", is_client=True))
    server = QuicConnection(
        configuration=quic.asyncio_configuration("b", is_client=False),
        original_destination_connection_id=client.original_destination_connection_id,
    )
    now, datagrams, started, done = 0.0, 0, 0, 0
    client.connect(("b", 1), now)
    while done < count:
        now += 0.0005
        while started - done < flight and started < count and client._handshake_confirmed:
            client.send_stream_data(client.get_next_available_stream_id(), quic.REQUEST, True)
            started += 1
        for source, target, name in ((client, server, "a"), (server, client, "b")):
            if source._network_paths:
                for data, _ in source.datagrams_to_send(now):
                    datagrams += 1
                    target.receive_datagram(data, (name, 1), now)
                if (due := source.get_timer()) is not None and due <= now:
                    source.handle_timer(now)
        while (event := server.next_event()) is not None:
            if isinstance(event, events.StreamDataReceived):
                server.send_stream_data(event.stream_id, event.data, event.end_stream)
        while (event := client.next_event()) is not None:
            done += isinstance(event, events.StreamDataReceived) and event.end_stream
    return datagrams
