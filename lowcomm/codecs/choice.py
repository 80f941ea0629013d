"""Which codec a link has time for.

One round of a model of N parameters among n islands moves, up and as much down, for a dense codec of b
bits 2 (n-1)/n * N b bits (reduce-scatter and all-gather), and for a sparse one (n-1) N b (all-gather).
This has to fit into half of the time between two rounds: the other half is for latency, for links that
are sometimes slower than they were measured, and for what isn't payload. The first codec of `ORDER` that
fits is taken; if none does, the last.

int8 is the first choice although exact numbers may fit, too: no study sees a difference in loss, and
unused bandwidth makes rounds shorter. int4 comes before e3m0, which is as large: both cost no loss.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lowcomm.arguments import number, whole

if TYPE_CHECKING:
    from lowcomm.codecs.base import Codec

ORDER = ("int8", "int4", "2bit", "topk")
SHARE = 0.5
"""Of the time between two rounds, for the transfer."""

_BITS = {"int8": 8.125, "int4": 4.25, "2bit": 2.125, "topk": 0.157}


@dataclass(frozen=True, slots=True)
class Choice:
    """A codec and the reason for it, one line for the log."""

    codec: Codec
    reason: str


def transfer_s(name: str, link_mbit_s: float, elements: int, islands: int) -> float:
    """Seconds that one round's payload of `elements` numbers keeps the link busy, latency not counted."""
    others = islands - 1
    copies = others if name == "topk" else 2 * others / islands
    return copies * elements * _BITS[name] / (1e6 * link_mbit_s)


def choose(link_mbit_s: float, *, elements: int, round_s: float, islands: int = 2) -> Choice:
    """Pick by measured bandwidth. Pure: equal figures give equal choices, so settle it once for a run.

    Args:
        link_mbit_s: measured, of the slowest island, in its slower direction.
        elements: parameters of the model.
        round_s: seconds from one round of a parameter to its next: inner_steps * seconds of a step.
        islands: how many exchange.

    Raises:
        ConfigError: a figure that isn't above 0 (islands: at least 2).
    """
    from lowcomm import codecs

    link_mbit_s = number("codecs.auto: link_mbit_s", link_mbit_s, above=0)
    elements = whole("codecs.auto: elements", elements, least=1)
    round_s = number("codecs.auto: round_s", round_s, above=0)
    islands = whole("codecs.auto: islands", islands, least=2)
    room_s = SHARE * round_s
    busy_s = {name: transfer_s(name, link_mbit_s, elements, islands) for name in ORDER}
    fits = [name for name in ORDER if busy_s[name] <= room_s]
    name = fits[0] if fits else ORDER[-1]
    at = f"at {link_mbit_s:.4g} Mbit/s among {islands} islands"
    room = f"{SHARE:.0%} of the {round_s:.3g} s between two rounds is {room_s:.3g} s"
    if not fits:
        reason = (
            f"{name}, the smallest, takes {busy_s[name]:.3g} s {at}, and {room}: too slow even so; "
            f"raise inner_steps {busy_s[name] / room_s:.2g} times"
        )
    elif name == ORDER[0]:
        reason = f"{name} takes {busy_s[name]:.3g} s {at}, and {room}"
    else:
        before = ORDER[ORDER.index(name) - 1]
        reason = f"{name} takes {busy_s[name]:.3g} s {at} ({before} {busy_s[before]:.3g} s), and {room}"
    return Choice(codecs.by_name(name), reason)
