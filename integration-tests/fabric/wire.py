"""Run in a machine's network namespace: `wire.py INTERFACE FILE` keeps every frame, each after its length in four bytes."""

import socket
import sys


def main(interface: str, path: str) -> None:
    with (
        socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)) as wire,  # ETH_P_ALL
        open(path, "wb", buffering=0) as file,
    ):
        wire.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
        wire.bind((interface, 0))
        print("listening", flush=True)
        while True:
            frame = wire.recv(65_536)
            file.write(len(frame).to_bytes(4, "big") + frame)


main(*sys.argv[1:])
