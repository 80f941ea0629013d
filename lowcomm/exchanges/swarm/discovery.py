"""Finds what an uplink carries, by sending half as much more at a time until a queue stands.

Congestion control does so by itself, but each connection on its own, and by the time that it notices a
queue, all together have sent some hundred milliseconds' worth too much: in the first seconds of a run
heartbeats wait and packets are lost. Here all together may send half as much more as has arrived in a round
trip, round trips are looked at many times a second, and as soon as they are longer than the shortest, what
arrives is what the uplink carries. For a moment less than that is sent, the less the longer the queue is: it
empties.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

GAIN = 1.5
"""With 2.0 an uplink with a queue of 84 ms lost a thousand packets in four of ten runs, and heartbeats waited
for them to be sent again."""
LEAST_BYTES = 512 << 10
"""In a round trip, however little has arrived. What carries less than half of it is not found here: few
packets say little, and are acknowledged late."""
QUEUED = 0.25
"""Of the shortest round trip: a queue that long stands at the uplink's end."""
SURELY_QUEUED, GROWS = 2.0, 1.3
"""Below so many times that, it is no queue but, say, a busy processor, while ever more arrives: so many times
as much as a tenth of a second before."""
SHORT_QUEUE_S = 0.02
"""What round trips are longer by at most where processors are busy and no queue is in the network."""
MEASURED_S = 0.2
"""What arrives from so long before a queue is noticed until so long after is what is carried."""
MOST_IDLE = 0.1
"""Of a time that says what is carried: where there was nothing to send for more of it, the uplink was not the
limit."""
_BURST_S = 0.1
_EMPTYING_S, _MOST_EMPTYING_S = 0.4, 1.0
"""In how long a queue is to empty; if it hasn't after the other, it is of others' making."""
_LEAST_ROOM = 0.4
_REMEMBERED_S = 2.0


@dataclass(frozen=True, slots=True)
class Arrivals:
    """Until a moment.

    Attributes:
        at_s: the moment.
        idle_s: for how long there has been nothing to send.
        acked: bytes that have arrived, by connection.
    """

    at_s: float
    idle_s: float
    acked: Mapping[object, int]

    def idle_since(self, before: Arrivals) -> float:
        """The part of the time in which there was nothing to send."""
        return (self.idle_s - before.idle_s) / (self.at_s - before.at_s)

    def rates_since(self, before: Arrivals) -> dict[object, float]:
        """Bytes per second, by connection."""
        passed_s = self.at_s - before.at_s
        return {path: (count - before.acked.get(path, 0)) / passed_s for path, count in self.acked.items()}

    def rate_since(self, before: Arrivals) -> float:
        """Bytes per second, of all connections together."""
        return sum(self.rates_since(before).values())


class Discovery:
    """Of one host's uplink.

    Args:
        most: bytes per second that it is known to carry.
    """

    def __init__(self, most: float = 0.0) -> None:
        self.over = False
        """A queue has stood, and is gone."""
        self.found = 0.0
        """Bytes per second that the uplink carries; 0 while no queue has stood."""
        self.carried: dict[object, float] = {}
        """Bytes per second of late, by connection, since a queue stands."""
        self._most = most
        self._queued_s: float | None = None
        self._earlier: deque[Arrivals] = deque()

    def pause(self) -> None:
        """Traffic has paused: what has arrived before is of another time, and queues are gone."""
        self._earlier.clear()
        self.over = self._queued_s is not None

    def heard(self, now: Arrivals, queue_s: float, least_s: float) -> float:
        """Bytes per second that all connections together may send now.

        Args:
            now: later than the last one.
            queue_s: by how much round trips are longer than the shortest.
            least_s: the shortest round trip.
        """
        self._earlier.append(now)
        if self._queued_s is None:
            while now.at_s - self._earlier[0].at_s > _REMEMBERED_S:
                self._earlier.popleft()
            # shorter bursts count with the pause between them: what GAIN allows is soon enough for them
            burst = self._before(now.at_s - max(_BURST_S, least_s))
            if burst:
                self._most = max(self._most, now.rate_since(burst))
            queued = queue_s / max(SHORT_QUEUE_S, QUEUED * least_s)
            at_least = LEAST_BYTES / max(least_s, 1e-4)
            before = self._before(now.at_s - MEASURED_S)
            searching = before is not None and 2 * self._most > at_least and self._told(before, now)
            if queued < 1 or not searching or (queued < SURELY_QUEUED and self._grows(now)):
                return max(at_least, (GAIN - min(1.0, queued) * (GAIN - 1)) * self._most)
            self._queued_s = now.at_s
            while self._earlier[0] is not before:
                self._earlier.popleft()
        if now.at_s - self._queued_s <= MEASURED_S and now.idle_since(self._earlier[0]) <= MOST_IDLE:
            self.carried = now.rates_since(self._earlier[0])
            self.found = now.rate_since(self._earlier[0])
        self.over = queue_s <= SHORT_QUEUE_S or now.at_s - self._queued_s > _MOST_EMPTYING_S
        return self.found * max(_LEAST_ROOM, 1 - queue_s / _EMPTYING_S)

    def _told(self, before: Arrivals, now: Arrivals) -> bool:
        """Whether what arrived between them says what is carried."""
        return now.idle_since(before) <= MOST_IDLE and now.rate_since(before) > 0

    def _grows(self, now: Arrivals) -> bool:
        """Whether ever more arrives, so that round trips are long for another reason than a queue."""
        middle, before = (self._before(now.at_s - part * MEASURED_S) for part in (0.5, 1.0))
        if middle is None or before is None or middle is before:
            return False
        return now.rate_since(middle) > GROWS * middle.rate_since(before)

    def _before(self, at_s: float) -> Arrivals | None:
        return next((arrivals for arrivals in reversed(self._earlier) if arrivals.at_s <= at_s), None)
