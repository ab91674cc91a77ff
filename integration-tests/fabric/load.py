"""Run in a pod's network namespace: `load.py HOST PORT RATE SECONDS` asks so many times a second, each time anew.

A replica answers with "I am", its name, and a line's end. Says "begun", and at the end all requests in one line of JSON:
`[began, took, name, error]`, by the monotonic clock that all processes of a computer share; the name is empty where there is
an error, and the other way round.
"""

import json
import sys
import time

import trio

ANSWER_S = 20.0


async def ask(host: str, port: int) -> str:
    async with await trio.open_tcp_stream(host, port) as stream:
        await stream.send_all(b"GET / HTTP/1.0\r\n\r\n")
        answer = b"".join([bytes(chunk) async for chunk in stream]).decode()
    _, said, name = answer.rpartition("I am ")
    if not said or not name.endswith("\n"):
        raise ValueError(f"{len(answer)} bytes, not a whole answer")
    return name.strip()


async def main(host: str, port: str, rate: str, seconds: str) -> None:
    found: list[tuple[float, float, str, str]] = []

    async def request() -> None:
        began, name, error = time.monotonic(), "", ""
        try:
            with trio.fail_after(ANSWER_S):
                name = await ask(host, int(port))
        except (OSError, trio.BrokenResourceError, trio.TooSlowError, ValueError) as problem:
            error = f"{type(problem).__name__}: {problem}"
        found.append((began, time.monotonic() - began, name, error))

    start = trio.current_time()
    print("begun", flush=True)
    async with trio.open_nursery() as nursery:
        for number in range(int(float(rate) * float(seconds))):
            await trio.sleep_until(start + number / float(rate))
            nursery.start_soon(request)
    print(json.dumps(sorted(found)))


trio.run(main, *sys.argv[1:])
