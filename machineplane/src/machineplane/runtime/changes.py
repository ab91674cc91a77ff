"""Tells subscribers of pods' changes, without letting a slow one hold anyone up."""

import trio

from machineplane.runtime.status import PodGone, PodStatus

Change = PodStatus | PodGone


class _Subscriber:
    def __init__(self) -> None:
        self.pending: dict[str, Change] = {}
        self.wake = trio.Event()


class Changes:
    """A hub. Each subscriber gets, of each pod, the latest state that it has not seen (older ones are left out)."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self._subscribers: set[_Subscriber] = set()

    def subscribe(self, present: tuple[PodStatus, ...] = ()) -> trio.MemoryReceiveChannel[Change]:
        """A channel that begins with ``present``; closing it ends the subscription."""
        send, receive = trio.open_memory_channel[Change](0)
        subscriber = _Subscriber()
        self._subscribers.add(subscriber)
        for status in present:
            self._put(subscriber, status)
        self._nursery.start_soon(self._feed, subscriber, send)
        return receive

    def publish(self, change: Change) -> None:
        """Tell all; never waits."""
        for subscriber in self._subscribers:
            self._put(subscriber, change)

    @staticmethod
    def _put(subscriber: _Subscriber, change: Change) -> None:
        subscriber.pending.pop(change.uid, None)
        subscriber.pending[change.uid] = change
        subscriber.wake.set()

    async def _feed(self, subscriber: _Subscriber, send: trio.MemorySendChannel[Change]) -> None:
        try:
            async with send:
                while True:
                    await subscriber.wake.wait()
                    while subscriber.pending:
                        uid = next(iter(subscriber.pending))
                        await send.send(subscriber.pending.pop(uid))
                    subscriber.wake = trio.Event()
        except trio.BrokenResourceError:
            pass  # nobody listens any more
        finally:
            self._subscribers.discard(subscriber)
