"""What this host's uplink carries, and each connection's share of it.

Each connection's congestion control looks for more than there is, time and again: queues in the network fill,
packets are lost by the hundred, and heartbeats wait. Where several connections do so at once it is worse: the
queue of one host's uplink holds up the acknowledgements of all that send to it, whose congestion control then
sends less than their links can do. So the kernel is told to pace each connection (SO_MAX_PACING_RATE) to a
share of `room` times the most that arrived in a second or two, of all connections together. Only a time in
which data waited to be sent, or a queue stood, says what the uplink can carry: what is sent in short bursts
says what there was to send, and to pace by that would stretch the bursts, again and again. `room` is above
1 while round trips are as short as ever, so that an uplink that carries more is noticed. Several
connections have a tenth less together, so that while round trips are long the queue empties; if it doesn't,
it is not of their making, and less would only be less every time. Nothing is paced in the first
second of traffic, or while what is carried still grows and no queue stands.

Shares are max-min fair: a connection whose other end takes less leaves the rest to the others; any may use an
equal part.
"""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Mapping

from lowcomm.exchanges.swarm.connection import ConnectionState

TICK_S = 0.25
ROOM, ROOM_UNQUEUED, ROOM_QUEUED = 1.1, 1.5, 1.0
SEVERAL = 0.9
"""Of the room, where several connections send."""
GROWS = 1.05
"""What is carried still grows, as when connections are new, where it is so much more than ever before."""
UNQUEUED, QUEUED = 1.15, 1.6
"""Round trip relative to the shortest, of the connection in the middle, below and above which the room is
another."""
SHORT_QUEUE_S = 0.02
"""What round trips are longer by at most where processors are busy and no queue is in the network."""
BUSY = 0.9
"""Of a window, in which data has to wait for the uplink to be what limits it."""
_WINDOW_TICKS, _LEAST_TICKS, _FIRST_TICKS = 8, 4, 2
"""The first ones will do where nothing is known yet and a queue stands, which fills until all is paced."""
_REMEMBERED = 120
"""Ticks of traffic."""
_EMPTYING_TICKS = 8
"""If round trips are still long after so many ticks of less, there is no less for as many."""
_PAUSE_S = 2 * TICK_S
"""Without news for so long, traffic has paused."""


class Uplink:
    """Of one host; call only from the exchange's loop."""

    def __init__(self) -> None:
        self._paths: dict[object, ConnectionState] = {}
        self._first: dict[object, int] = {}
        self._window: deque[tuple[float, float, dict[object, int]]] = deque(maxlen=_WINDOW_TICKS + 1)
        self._busy: set[object] = set()
        self._idle_s, self._rested_s = 0.0, float("inf")
        self._carried: deque[float] = deque(maxlen=_REMEMBERED)
        self._rates: dict[object, float] = {}
        self._wanted: dict[object, float] = {}
        self._queued_ticks = 0
        self._heard_s = self._ticked_s = float("-inf")

    def rate(self, path: object) -> float:
        """Bytes per second that a connection is to send at most."""
        return self._rates.get(path, float("inf"))

    def heard(self, path: object, state: ConnectionState, now_s: float) -> None:
        """The state of one connection that has bulk data to send."""
        if now_s - self._heard_s > _PAUSE_S:
            self._paths, self._first = {}, {}
            self._window.clear()
            self._ticked_s = now_s
            self._queued_ticks = 0
            if self._rates:
                # no queue stands any more, and with more room one would, before that is noticed
                self._share(ROOM, self._wanted)
        elif not self._busy:
            self._idle_s += max(0.0, now_s - self._rested_s)
        self._busy.add(path)
        self._heard_s = now_s
        self._paths[path] = state
        self._first.setdefault(path, state.acked_bytes)
        if now_s - self._ticked_s >= TICK_S:
            self._ticked_s = now_s
            self._tick(now_s)

    def rests(self, path: object, now_s: float) -> None:
        """A connection has nothing to send any more, until it is heard of again."""
        self._busy.discard(path)
        if not self._busy:
            self._rested_s = now_s

    def gone(self, path: object) -> None:
        """A connection has ended: its share is for the others."""
        self._paths.pop(path, None)
        self._first.pop(path, None)
        self._rates.pop(path, None)
        if self._wanted.pop(path, None) is not None and self._rates:
            self._share(ROOM, self._wanted)

    def _tick(self, now_s: float) -> None:
        acked = {path: state.acked_bytes - self._first[path] for path, state in self._paths.items()}
        self._window.append((now_s, self._idle_s, acked))
        trip = statistics.median_low(map(_trip, self._paths.values()))
        if len(self._window) > _LEAST_TICKS:
            began_s, idle_before_s, before = self._window[0]
        elif len(self._window) > _FIRST_TICKS and trip > QUEUED and not self._carried:
            began_s, idle_before_s, before = self._window[-1 - _FIRST_TICKS]
        else:
            return
        passed_s = now_s - began_s
        busy_s = passed_s - (self._idle_s - idle_before_s)
        carried = {path: (count - before.get(path, 0)) / passed_s for path, count in acked.items()}
        if busy_s >= BUSY * passed_s or trip > QUEUED:
            most, now = max(self._carried, default=0.0), sum(carried.values())
            self._carried.append(now)
            if now > GROWS * most and trip <= QUEUED:
                self._rates = {}
                return
        if self._carried:
            self._share(self._room(trip), {path: ROOM_UNQUEUED * rate for path, rate in carried.items()})

    def _room(self, trip: float) -> float:
        """When round trips are so much longer than the shortest."""
        self._queued_ticks = self._queued_ticks + 1 if trip > QUEUED else 0
        return ROOM_UNQUEUED if trip < UNQUEUED else ROOM_QUEUED if trip > QUEUED else ROOM

    def _share(self, room: float, wanted: dict[object, float]) -> None:
        in_vain = self._queued_ticks // (_EMPTYING_TICKS + 1) % 2 == 1
        total = room * max(self._carried) * (1.0 if len(wanted) == 1 or in_vain else SEVERAL)
        self._rates, self._wanted = shares(total, wanted), wanted


def _trip(state: ConnectionState) -> float:
    """A round trip, relative to the shortest."""
    if state.round_trip_s - state.least_round_trip_s <= SHORT_QUEUE_S or not state.least_round_trip_s:
        return 1.0
    return state.round_trip_s / state.least_round_trip_s


def shares(total: float, wanted: Mapping[object, float]) -> dict[object, float]:
    """Max-min fair shares of `total`; none is below an equal part, which who wants less may still use.

    Args:
        wanted: what each would use, in the unit of `total`.
    """
    equal = total / len(wanted)
    left, found = total, {}
    for number, path in enumerate(sorted(wanted, key=lambda path: wanted[path])):
        fair = left / (len(wanted) - number)
        found[path] = max(equal, fair)
        left -= min(wanted[path], fair)
    return found
