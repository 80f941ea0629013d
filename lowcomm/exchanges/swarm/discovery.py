"""Finds what an uplink carries, by sending twice as much at a time until a queue stands.

Congestion control does so by itself, but each connection on its own, and by the time that it notices a
queue, all together have sent some hundred milliseconds' worth too much: in the first seconds of a run
heartbeats wait and packets are lost. Here all together may send twice of what has arrived in a round trip,
round trips are looked at many times a second, and as soon as they are longer than the shortest, what arrives
is what the uplink carries. For a moment less than that is sent, the less the longer the queue is: it empties.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

GAIN = 2.0
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
MEASURED_S, MOST_IDLE = 0.2, 0.1
"""What arrives from so long before a queue is noticed until so long after is what is carried, unless there
was nothing to send for a larger part."""
_BURST_S = 0.1
_EMPTYING_S, _MOST_EMPTYING_S = 0.4, 1.0
"""In how long a queue is to empty; if it hasn't after the other, it is of others' making."""
_LEAST_ROOM = 0.4
_REMEMBERED_S = 2.0

_Sample = tuple[float, float, Mapping[object, int]]
"""When; for how long there has been nothing to send; what has arrived, by connection."""


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
        self._samples: deque[_Sample] = deque()

    def pause(self) -> None:
        """Traffic has paused: what has arrived before is of another time, and queues are gone."""
        self._samples.clear()
        self.over = self._queued_s is not None

    def heard(
        self, now_s: float, idle_s: float, acked: Mapping[object, int], queue_s: float, least_s: float
    ) -> float:
        """Bytes per second that all connections together may send now.

        Args:
            idle_s: for how long there was nothing to send, since ever.
            acked: bytes that have arrived, by connection.
            queue_s: by how much round trips are longer than the shortest.
            least_s: the shortest round trip.
        """
        sample = (now_s, idle_s, acked)
        self._samples.append(sample)
        if self._queued_s is None:
            while now_s - self._samples[0][0] > _REMEMBERED_S:
                self._samples.popleft()
            # bursts that are shorter count with the pause between them: twice as much is soon enough for them
            burst = self._before(now_s - max(_BURST_S, least_s))
            if burst:
                self._most = max(self._most, _total(burst, sample))
            queued = queue_s / max(SHORT_QUEUE_S, QUEUED * least_s)
            before = self._before(now_s - MEASURED_S)
            at_least = LEAST_BYTES / max(least_s, 1e-4)
            searching = GAIN * self._most > at_least and self._told(before, sample)
            if queued < 1 or not searching or (queued < SURELY_QUEUED and self._grows()):
                return max(at_least, (GAIN - min(1.0, queued) * (GAIN - 1)) * self._most)
            self._queued_s = now_s
            while self._samples[0] is not before:
                self._samples.popleft()
        if now_s - self._queued_s <= MEASURED_S and _idle(self._samples[0], sample) <= MOST_IDLE:
            self.carried = _rates(self._samples[0], sample)
            self.found = _total(self._samples[0], sample)
        self.over = queue_s <= SHORT_QUEUE_S or now_s - self._queued_s > _MOST_EMPTYING_S
        return self.found * max(_LEAST_ROOM, 1 - queue_s / _EMPTYING_S)

    def _told(self, before: _Sample | None, now: _Sample) -> bool:
        """Whether what arrived between them says what is carried."""
        return before is not None and _idle(before, now) <= MOST_IDLE and _total(before, now) > 0

    def _grows(self) -> bool:
        """Whether ever more arrives, so that round trips are long for another reason than a queue."""
        now = self._samples[-1]
        middle, before = (self._before(now[0] - part * MEASURED_S) for part in (0.5, 1.0))
        if middle is None or before is None or middle is before:
            return False
        return _total(middle, now) > GROWS * _total(before, middle)

    def _before(self, at_s: float) -> _Sample | None:
        return next((sample for sample in reversed(self._samples) if sample[0] <= at_s), None)


def _idle(before: _Sample, now: _Sample) -> float:
    """The part of a time in which there was nothing to send."""
    return (now[1] - before[1]) / (now[0] - before[0])


def _rates(before: _Sample, now: _Sample) -> dict[object, float]:
    """What has arrived per second, by connection."""
    return {path: (count - before[2].get(path, 0)) / (now[0] - before[0]) for path, count in now[2].items()}


def _total(before: _Sample, now: _Sample) -> float:
    return sum(_rates(before, now).values())
