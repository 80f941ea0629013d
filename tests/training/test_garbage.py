"""What lives as long as the process is not looked at again and again."""

import gc

from lowcomm.training.garbage import exempt_from_collection


def test_what_is_alive_is_left_out_of_collections_and_what_comes_later_is_not() -> None:
    gc.unfreeze()
    alive = {"cycle": []}
    alive["cycle"].append(alive)
    exempt_from_collection()
    try:
        later = {"cycle": []}
        later["cycle"].append(later)
        seen = {id(thing) for thing in gc.get_objects()}
        assert gc.get_freeze_count() > 0
        assert id(alive) not in seen
        assert id(later) in seen
    finally:
        gc.unfreeze()
