"""What this host's uplink carries, and each connection's share of it.

Each connection's congestion control looks for more than there is, time and again: queues in the network fill,
packets are lost by the hundred, and heartbeats wait. Where several connections do so at once it is worse: the
queue of one host's uplink holds up the acknowledgements of all that send to it, whose congestion control then
sends less than their links can do. So the kernel is told to pace each connection (SO_MAX_PACING_RATE) to a
share of `room` times the most that arrived in a second or two, of all connections together. Only a time in
which data waited to be sent, or a queue stood, says what the uplink can carry: what is sent in short bursts
says what there was to send, and to pace by that would stretch the bursts, again and again. `room` is above
1 while round trips are as short as ever, so that an uplink that carries more is noticed, and the less the
longer they are. Several connections have a tenth less together, so that while round trips are long the queue
empties; if it doesn't, it is not of their making, and less would only be less every time.

What an uplink carries is found at first, and again where it turns out to carry more, by sending half as much
more at a time (discovery.py).

Shares are max-min fair: a connection whose other end takes less leaves the rest to the others; any may use an
equal part.
"""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Mapping

from lowcomm.exchanges.swarm.connection import ConnectionState
from lowcomm.exchanges.swarm.discovery import MOST_IDLE, SHORT_QUEUE_S, Arrivals, Discovery

TICK_S, ANSWER_S, DISCOVERY_S = 0.25, 0.05, 0.02
"""What is carried is reckoned with the first, queues are answered with the second, and with the last while
what the uplink carries is being found."""
ROOM, MOST_ROOM, LEAST_ROOM = 1.1, 1.3, 1.0
"""When traffic begins again, and where there is no queue and a long one."""
SEVERAL = 0.9
"""Of the room, where several connections send."""
WANTED = 1.5
"""Of what a connection has carried, beyond which the others have what is left."""
GROWS = 1.1
"""The uplink carries more than was known where it is so much more than ever before."""
UNQUEUED, FULL, QUEUED = 1.1, 1.4, 1.6
"""Round trip relative to the shortest, of the connection in the middle: between the first two the room falls;
beyond the last a queue stands, whether or not there always is something to send."""
_WINDOW_TICKS, _LEAST_TICKS = 8, 4
_REMEMBERED = 120
"""Ticks of traffic."""
_EMPTYING_TICKS = 8
"""If round trips are still long after so many ticks of less, there is no less for as many."""
_PAUSE_S = 0.5
"""Without news for so long, traffic has paused."""
_STALE_TRIPS = 2
"""Round trips after a pause in which the kernel's figures are of the time before."""


class Uplink:
    """Of one host; call only from the exchange's loop."""

    def __init__(self) -> None:
        self._paths: dict[object, ConnectionState] = {}
        self._first: dict[object, int] = {}
        self._window: deque[Arrivals] = deque(maxlen=_WINDOW_TICKS + 1)
        self._busy: set[object] = set()
        self._idle_s, self._rested_s = 0.0, float("inf")
        self._carried: deque[float] = deque(maxlen=_REMEMBERED)
        self._discovery: Discovery | None = Discovery()
        self._found = 0.0
        self._rates: dict[object, float] = {}
        self._wanted: dict[object, float] = {}
        self._queued_ticks = 0
        self._heard_s = self._ticked_s = self._answered_s = self._began_s = float("-inf")

    def rate(self, path: object) -> float:
        """Bytes per second that a connection is to send at most."""
        return self._rates.get(path, float("inf"))

    def heard(self, path: object, state: ConnectionState, now_s: float) -> None:
        """The state of one connection that has bulk data to send."""
        if now_s - self._heard_s > _PAUSE_S:
            self._paths, self._first = {}, {}
            self._window.clear()
            self._ticked_s = self._began_s = now_s
            self._queued_ticks = 0
            if self._discovery is not None:
                self._discovery.pause()
                self._settle()
            if self._discovery is None:
                self._share(ROOM)  # with more a queue would stand before that is noticed
        elif not self._busy:
            self._idle_s += max(0.0, now_s - self._rested_s)
        self._busy.add(path)
        self._heard_s = now_s
        self._first.setdefault(path, state.acked_bytes)
        if path in self._paths:  # less has arrived where one of two connections has ended
            self._first[path] += min(0, state.acked_bytes - self._paths[path].acked_bytes)
        self._paths[path] = state
        if now_s - self._answered_s >= (ANSWER_S if self._discovery is None else DISCOVERY_S):
            self._answered_s = now_s
            self._answer(now_s)
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
        if self._wanted.pop(path, None) is not None and self._discovery is None:
            self._share(ROOM)

    def _arrivals(self, now_s: float) -> Arrivals:
        acked = {path: state.acked_bytes - self._first[path] for path, state in self._paths.items()}
        return Arrivals(now_s, self._idle_s, acked)

    def _answer(self, now_s: float) -> None:
        least_s = statistics.median_low(state.least_round_trip_s for state in self._paths.values())
        if now_s - self._began_s < _STALE_TRIPS * least_s:
            return
        if self._discovery is None:
            self._share(self._room())
            return
        queue_s = statistics.median_low(
            state.round_trip_s - state.least_round_trip_s for state in self._paths.values()
        )
        total = self._discovery.heard(self._arrivals(now_s), queue_s, least_s)
        carried = self._discovery.carried or dict.fromkeys(self._paths, total)
        self._wanted = {path: WANTED * rate for path, rate in carried.items()}
        self._rates = shares(total, self._wanted)
        self._found = self._discovery.found
        self._settle()

    def _settle(self) -> None:
        """Go on with what has been found, if it has."""
        if self._discovery is not None and self._discovery.over:
            self._discovery = None
            self._window.clear()
            self._carried.clear()

    def _tick(self, now_s: float) -> None:
        arrivals = self._arrivals(now_s)
        self._window.append(arrivals)
        if len(self._window) <= _LEAST_TICKS:
            return
        queued = self._trip() > QUEUED
        self._queued_ticks = self._queued_ticks + 1 if queued else 0
        if arrivals.idle_since(self._window[0]) > MOST_IDLE and not queued:
            return
        carried = arrivals.rates_since(self._window[0])
        most, now = max(self._carried, default=self._found), sum(carried.values())
        self._carried.append(now)
        self._wanted = {path: WANTED * rate for path, rate in carried.items()}
        grows = now > GROWS * most
        if self._discovery is not None:
            if not grows and not self._discovery.found:
                self._discovery = None
        elif grows and not queued:
            self._carried.clear()
            self._discovery = Discovery(now)

    def _trip(self) -> float:
        """A round trip, relative to the shortest, of the connection in the middle."""
        return statistics.median_low(map(_trip, self._paths.values()))

    def _room(self) -> float:
        queued = (self._trip() - UNQUEUED) / (FULL - UNQUEUED)
        return MOST_ROOM - (MOST_ROOM - LEAST_ROOM) * min(1.0, max(0.0, queued))

    def _share(self, room: float) -> None:
        wanted = dict.fromkeys(self._paths, float("inf")) | self._wanted
        if not wanted:
            return
        in_vain = self._queued_ticks // (_EMPTYING_TICKS + 1) % 2 == 1
        several = 1.0 if len(wanted) == 1 or in_vain else SEVERAL
        most = max(self._carried, default=self._found)
        self._rates = shares(room * several * most, wanted)


def _trip(state: ConnectionState) -> float:
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
