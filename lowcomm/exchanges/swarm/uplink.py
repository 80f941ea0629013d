"""What this host's uplink carries, so that no connection asks for more.

Each connection's congestion control looks for more than there is, time and again: queues in the network fill,
packets are lost by the hundred, and heartbeats wait. So the kernel is told to pace each connection
(SO_MAX_PACING_RATE) by `room` times the most that arrived in a second or two of traffic without pause, of all
connections together. `room` is above 1, so that an uplink that carries more is noticed, more so while round
trips are as short as ever. Nothing is paced before a second of traffic, or while what is carried still grows.

The rate is for each connection, not divided among them: who sends to one peer alone may use all of it.
"""

from __future__ import annotations

from collections import deque

from lowcomm.exchanges.swarm.connection import ConnectionState

TICK_S = 0.25
ROOM, ROOM_UNQUEUED, ROOM_QUEUED = 1.1, 1.5, 1.0
GROWS = 1.05
"""What is carried still grows, as when connections are new, where it is so much more than ever before."""
UNQUEUED, QUEUED = 1.15, 1.6
"""Mean round trip relative to the shortest, below and above which the room is another."""
_WINDOW_TICKS, _LEAST_TICKS = 8, 4
_REMEMBERED = 120
"""Ticks of traffic."""
_PAUSE_S = 2 * TICK_S
"""Without news for so long, traffic has paused."""


class Uplink:
    """Of one host; call only from the exchange's loop.

    Attributes:
        rate: bytes per second.
    """

    def __init__(self) -> None:
        self.rate = float("inf")
        self._paths: dict[object, ConnectionState] = {}
        self._first: dict[object, int] = {}
        self._window: deque[tuple[float, int]] = deque(maxlen=_WINDOW_TICKS + 1)
        self._carried: deque[float] = deque(maxlen=_REMEMBERED)
        self._heard_s = self._ticked_s = float("-inf")

    def heard(self, path: object, state: ConnectionState, now_s: float) -> None:
        """The state of one connection that has bulk data to send."""
        if now_s - self._heard_s > _PAUSE_S:
            self._paths, self._first = {}, {}
            self._window.clear()
            self._ticked_s = now_s
        self._heard_s = now_s
        self._paths[path] = state
        self._first.setdefault(path, state.acked_bytes)
        if now_s - self._ticked_s >= TICK_S:
            self._ticked_s = now_s
            self._tick(now_s)

    def _tick(self, now_s: float) -> None:
        acked = sum(state.acked_bytes - self._first[path] for path, state in self._paths.items())
        self._window.append((now_s, acked))
        began_s, before = self._window[0]
        if len(self._window) <= _LEAST_TICKS:
            return
        most, now = max(self._carried, default=0.0), (acked - before) / (now_s - began_s)
        self._carried.append(now)
        if now > GROWS * most:
            self.rate = float("inf")
            return
        trips = [
            state.round_trip_s / state.least_round_trip_s
            for state in self._paths.values()
            if state.least_round_trip_s
        ]
        trip = sum(trips) / len(trips) if trips else 1.0
        room = ROOM_UNQUEUED if trip < UNQUEUED else ROOM_QUEUED if trip > QUEUED else ROOM
        self.rate = room * max(most, now)
