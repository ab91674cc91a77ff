"""The first process of a lab machine: it holds the namespaces, and its end is the machine's power failure.

Run as a bare script (``python -I -S init.py <mark> <lab directory> <machine>``), with nothing imported that
it does not need. It starts nothing: a daemon is brought in from outside (``enter``), and what loses its
parent becomes a child of this process, whose ended children the kernel removes by itself, as it ignores
SIGCHLD.
"""

import signal


def main() -> None:
    """Wait for the end. No signal but SIGKILL from outside reaches the first process of a namespace."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        signal.pause()


if __name__ == "__main__":
    main()
