"""What the kernel would say of a connection."""

from lowcomm.exchanges.swarm.connection import ConnectionState


def connection_state(
    *, unsent: int = 0, acked: int = 0, rate: int = 1000, trip_s: float = 0.1, least_s: float = 0.1
) -> ConnectionState:
    return ConnectionState(unsent, acked, rate, trip_s, least_s)
