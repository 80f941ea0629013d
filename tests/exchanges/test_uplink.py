"""What an uplink carries, and each connection's share of it."""

from collections import defaultdict

import pytest

from lowcomm.exchanges.swarm.discovery import GAIN, LEAST_BYTES
from lowcomm.exchanges.swarm.uplink import (
    FULL,
    LEAST_ROOM,
    MOST_ROOM,
    ROOM,
    SEVERAL,
    TICK_S,
    UNQUEUED,
    WANTED,
    Uplink,
    shares,
)
from tests.exchanges.kernel import connection_state

MIB = 1 << 20
LOOK_S = 0.05


class BusyUplink(Uplink):
    """Of which the test says what is carried over connections 0, 1, ..."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 0.0
        self.acked: defaultdict[int, float] = defaultdict(float)

    def carry(self, seconds: float, mib_s: list[float], *, trip_s: float = 0.1, pause_s: float = 0.0) -> None:
        self.now_s += pause_s
        for _ in range(round(seconds / LOOK_S)):
            for path, rate in enumerate(mib_s):
                self.heard(path, connection_state(acked=int(self.acked[path]), trip_s=trip_s), self.now_s)
                self.acked[path] += LOOK_S * rate * MIB
            self.now_s += LOOK_S


HALF_WAY_S = 0.1 * (UNQUEUED + FULL) / 2


@pytest.mark.parametrize(
    ("trip_s", "room"),
    [(0.101, MOST_ROOM), (HALF_WAY_S, (MOST_ROOM + LEAST_ROOM) / 2), (0.2, LEAST_ROOM), (0.4, LEAST_ROOM)],
)
def test_connections_share_what_all_have_carried(trip_s: float, room: float) -> None:
    for rates, several in (([10.0], 1.0), ([5.0, 5.0], SEVERAL)):
        uplink = BusyUplink()
        uplink.carry(2.7, rates, trip_s=trip_s)
        for path, rate in enumerate(rates):
            assert uplink.rate(path) == pytest.approx(several * room * rate * MIB, rel=0.02)


def test_what_an_uplink_carries_is_found_by_sending_twice_as_much_at_a_time() -> None:
    uplink = BusyUplink()
    assert uplink.rate(0) == float("inf")
    uplink.carry(0.3, [1.0, 1.0])
    assert uplink.rate(0) == pytest.approx(LEAST_BYTES / 0.1 / 2)
    uplink.carry(0.3, [6.0, 6.0])
    assert uplink.rate(0) == pytest.approx(GAIN * 6 * MIB, rel=0.02)
    uplink.carry(0.3, [12.0, 12.0])
    assert uplink.rate(1) == pytest.approx(GAIN * 12 * MIB, rel=0.02)
    uplink.carry(0.3, [16.0, 16.0])
    uplink.carry(0.3, [16.0, 16.0], trip_s=0.15)
    assert uplink.rate(0) == pytest.approx(0.875 * 16 * MIB, rel=0.05)  # less, so that the queue empties
    uplink.carry(0.2, [16.0, 16.0])
    assert uplink.rate(0) == pytest.approx(SEVERAL * MOST_ROOM * 16 * MIB, rel=0.05)


def test_an_uplink_that_carries_more_than_it_did_is_found_to() -> None:
    uplink = BusyUplink()
    uplink.carry(3.0, [2.0])
    assert uplink.rate(0) == pytest.approx(MOST_ROOM * 2 * MIB, rel=0.02)
    uplink.carry(1.0, [20.0])
    assert uplink.rate(0) == pytest.approx(GAIN * 20 * MIB, rel=0.02)
    uplink.carry(0.3, [20.0], trip_s=0.15)
    uplink.carry(1.0, [20.0], trip_s=0.11)
    assert uplink.rate(0) == pytest.approx(MOST_ROOM * 20 * MIB, rel=0.02)


def test_where_ever_more_arrives_long_round_trips_are_no_queue() -> None:
    for growth in (1.25, 1.0):
        uplink, rate = BusyUplink(), 10.0
        for _ in range(16):
            uplink.carry(LOOK_S, [rate], trip_s=0.13)
            rate *= growth
        lately = sum(rate * MIB / growth**before for before in (2, 3)) / 2
        less = 1.0 if growth > 1 else 0.925
        assert uplink.rate(0) == pytest.approx(less * lately, rel=0.02)


def test_a_link_that_is_always_queued_is_reckoned_with_in_the_end() -> None:
    uplink = BusyUplink()
    for _ in range(8):  # so short bursts, and so often, that nothing is found by looking
        uplink.carry(LOOK_S, [1.0], trip_s=0.4)
        uplink.rests(0, uplink.now_s)
        uplink.now_s += 4 * LOOK_S
        uplink.acked[0] += 4 * LOOK_S * MIB
    assert uplink.rate(0) == pytest.approx(MIB, rel=0.02)


def test_of_a_few_packets_that_are_acknowledged_late_nothing_is_concluded() -> None:
    uplink = BusyUplink()
    uplink.carry(0.9, [0.1, 0.1, 0.1], trip_s=0.14)
    assert uplink.rate(0) == pytest.approx(LEAST_BYTES / 0.1 / 3)


def test_a_stalled_link_is_not_taken_for_one_that_carries_nothing() -> None:
    uplink = BusyUplink()
    uplink.carry(1.0, [0.0], trip_s=0.4)
    assert uplink.rate(0) == pytest.approx(LEAST_BYTES / 0.1)


def test_what_arrived_over_a_connection_that_has_ended_is_not_taken_back() -> None:
    uplink = BusyUplink()
    uplink.carry(3.0, [10.0])
    uplink.acked[0] /= 2
    uplink.carry(1.0, [10.0])
    assert uplink.rate(0) == pytest.approx(MOST_ROOM * 10 * MIB, rel=0.06)


def test_a_queue_is_answered_at_once() -> None:
    uplink = BusyUplink()
    uplink.carry(3.0, [5.0, 5.0])
    assert uplink.rate(0) == pytest.approx(SEVERAL * MOST_ROOM * 5 * MIB, rel=0.02)
    uplink.carry(TICK_S / 2, [5.0, 5.0], trip_s=0.2)
    assert uplink.rate(0) == pytest.approx(SEVERAL * LEAST_ROOM * 5 * MIB, rel=0.02)


def test_after_a_pause_no_more_is_sent_than_was_carried() -> None:
    for trip_s in (0.101, 0.4):
        uplink = BusyUplink()
        uplink.carry(3.0, [2.0, 8.0], trip_s=trip_s)
        uplink.carry(0.1, [2.0, 8.0], pause_s=5.0)
        equal, fair = SEVERAL * ROOM * 5, SEVERAL * ROOM * 10 - WANTED * 2
        assert [uplink.rate(path) / MIB for path in range(2)] == pytest.approx([equal, fair], rel=0.02)


def test_the_share_of_a_connection_that_ended_is_for_the_others() -> None:
    uplink = BusyUplink()
    uplink.carry(3.0, [3.0, 3.0, 3.0], trip_s=0.13)
    uplink.gone(2)
    assert [uplink.rate(path) / MIB for path in range(2)] == pytest.approx(
        [SEVERAL * ROOM * 4.5] * 2, rel=0.02
    )
    uplink.gone(1)
    assert uplink.rate(0) == pytest.approx(ROOM * 9 * MIB, rel=0.02)
    uplink.gone(0)
    assert uplink.rate(0) == float("inf")


def test_of_short_bursts_nothing_is_concluded() -> None:
    uplink, acked = Uplink(), 0
    for burst in range(100):  # 0.1 of every 0.3 s, as training with short intervals sends
        for look in range(10):
            now_s = 0.3 * burst + 0.01 * look
            uplink.heard(0, connection_state(acked=acked, trip_s=0.001, least_s=0.0001), now_s)
            acked += MIB
        uplink.rests(0, now_s)
        assert uplink.rate(0) >= LEAST_BYTES / 0.0001


def test_round_trips_of_a_busy_processor_are_no_queue() -> None:
    uplink = Uplink()
    now_s = 0.0
    while now_s < 3.0:
        uplink.heard(0, connection_state(acked=int(now_s * MIB), trip_s=0.015, least_s=0.0001), now_s)
        now_s += 0.05
    assert uplink.rate(0) == pytest.approx(MOST_ROOM * MIB, rel=0.02)


def test_a_queue_that_sending_less_does_not_empty_is_not_answered_with_less_and_less() -> None:
    uplink, found = BusyUplink(), []
    uplink.carry(1.5, [5.0, 5.0], trip_s=0.4)
    for _ in range(40):
        uplink.carry(TICK_S, [5.0, 5.0], trip_s=0.4)
        found.append(uplink.rate(0) / MIB)
    less = [rate for rate in found if rate == pytest.approx(SEVERAL * 5, rel=0.05)]
    assert 10 <= len(less) <= len(found) - 10
    assert all(rate == pytest.approx(5, rel=0.05) for rate in found if rate not in less)


def test_what_a_slow_receiver_leaves_is_for_the_others() -> None:
    uplink, total = BusyUplink(), 10 * SEVERAL * ROOM
    uplink.carry(3.0, [0.5, 4.75, 4.75], trip_s=0.13)
    slow, *others = (uplink.rate(path) / MIB for path in range(3))
    assert slow == pytest.approx(total / 3, rel=0.02)
    assert others == pytest.approx([(total - WANTED * 0.5) / 2] * 2, rel=0.02)


def test_shares_are_max_min_fair() -> None:
    assert shares(9.0, {"a": 5.0, "b": 5.0, "c": 5.0}) == {"a": 3.0, "b": 3.0, "c": 3.0}
    assert shares(9.0, {"a": 1.0, "b": 9.0, "c": 9.0}) == {"a": 3.0, "b": 4.0, "c": 4.0}
    assert shares(9.0, {"a": 9.0, "b": 2.0, "c": 1.0}) == {"a": 6.0, "b": 4.0, "c": 3.0}
    assert shares(9.0, {"a": 0.0}) == {"a": 9.0}


def test_pauses_and_slow_traffic_do_not_lower_the_rate_of_an_uplink() -> None:
    uplink = BusyUplink()
    uplink.carry(3.0, [10.0], trip_s=0.13)
    uplink.carry(3.0, [1.0], pause_s=60.0, trip_s=0.13)
    assert uplink.rate(0) == pytest.approx(ROOM * 10 * MIB, rel=0.02)
    uplink.carry(60.0, [1.0], pause_s=27.0, trip_s=0.13)  # so long that it is the uplink
    assert uplink.rate(0) == pytest.approx(ROOM * MIB, rel=0.02)
