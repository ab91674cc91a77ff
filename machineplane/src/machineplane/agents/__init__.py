"""The machine's side of the seam to its pods' agents: for each pod HTTP on a Unix socket.

The calls: workplane-spec, "The agent's calls".

A :class:`Door` serves one pod and asks a :class:`Host` for whatever its agent wants; the host is another room's. What an
agent sends is read in :mod:`machineplane.agents.calls` alone, and nothing of it ends or burdens the daemon: heads, bodies,
connections and the rate of requests are bounded, and slow ones are cut off.
"""

from machineplane.agents.calls import LeaderSaid, Refusal, Standing, StatusReport
from machineplane.agents.door import Door, Host

__all__ = ["Door", "Host", "LeaderSaid", "Refusal", "Standing", "StatusReport"]
