"""Numbers and words that the mesh itself puts on the wire."""

from __future__ import annotations

# Error codes of an RPC answer.
BUSY = "busy"  # the peer handles as many calls of ours as it will: try again later
CANCELLED = "cancelled"  # the node is shutting down
DEADLINE = "deadline"  # the deadline that travelled with the call has passed at the handler
INTERNAL = "internal"  # the handler failed; the peer's log says how
MALFORMED = "malformed"  # the request's header could not be understood
UNIMPLEMENTED = "unimplemented"  # no handler has that method name

# Refusals of a relay, or of a machine that is asked to help with one.
RELAY_OFF = "relay.off"  # this machine does not relay: it was told not to, or cannot be reached itself
RELAY_UNKNOWN = "relay.unknown"  # this machine does not know yet whether it can be reached: ask again
RELAY_CHAINED = "relay.chained"  # the caller itself is here by a relay
RELAY_TARGET = "relay.target"  # that machine cannot be reached by this one
RELAY_FULL = "relay.full"  # the relay, or the machine at the other end, has as many circuits as it will
RELAY_QUOTA = "relay.quota"  # one of the two ends has
RELAY_BODY = "relay.body"  # the call's body is not what it should be
RELAY_DIRECT = "relay.direct"  # there is no relay between the two: nothing to punch through

# Application error codes of a QUIC connection's close.
CLOSE_OK = 0
CLOSE_GOODBYE = 1  # the node leaves: do not redial
CLOSE_DUPLICATE = 2  # simultaneous open: the other connection stays
CLOSE_REPLACED = 3  # the same peer came with a newer connection
CLOSE_FULL = 4  # max_connections reached
CLOSE_DROPPED = 5  # least used connection given up to make room
CLOSE_MISBEHAVED = 6  # the peer broke the mesh's protocol

# Application error codes of a stream's reset.
RESET_CANCELLED = 1
RESET_MALFORMED = 2
RESET_HANDLER = 3

# Methods of the mesh itself.
HELLO = "/magik/mesh/hello/1.0.0"
PEERS = "/magik/mesh/peers/1.0.0"
GOSSIP = "/magik/mesh/gossip/1.0.0"
PROBE = "/magik/relay/probe/1.0.0"
RESERVE = "/magik/relay/reserve/1.0.0"
OPEN = "/magik/relay/open/1.0.0"
ACCEPT = "/magik/relay/accept/1.0.0"
PUNCH = "/magik/relay/punch/1.0.0"

REVOCATIONS = "/magik/mesh/revocations/1.0.0"

PRESENCE_TOPIC = "magik-presence"
REVOCATIONS_TOPIC = "magik-revocations"
