"""Memory is used again when nobody refers to it any more, and not before."""

import threading

import pytest
import torch

from lowcomm.islands.recycled import FITS, IDLE_STEPS, KEPT, RecycledMemory
from lowcomm.islands.vectors import HostVectors, bytes_of


def test_what_nobody_refers_to_is_used_again() -> None:
    memory = RecycledMemory()
    first = memory.empty(1000)
    place = first.data_ptr()
    del first
    again = memory.empty(1000)
    assert (again.data_ptr(), again.dtype, tuple(again.shape)) == (place, torch.float32, (1000,))
    assert memory.empty(1000).data_ptr() != place


@pytest.mark.parametrize(
    "refer",
    [lambda x: x[10:20], lambda x: x.numpy(), lambda x: bytes_of(x[10:20]), lambda x: x.view(torch.uint8)],
    ids=["view", "array", "memoryview", "bytes"],
)
def test_what_somebody_refers_to_is_left_alone(refer) -> None:
    memory = RecycledMemory()
    tensor = memory.empty(1000).fill_(1.0)
    part = refer(tensor)
    before = bytes(part) if isinstance(part, memoryview) else part.tolist()
    del tensor
    others = [memory.empty(1000).zero_() for _ in range(KEPT + 1)]
    assert all(not other.any() for other in others)
    assert (bytes(part) if isinstance(part, memoryview) else part.tolist()) == before


def test_vectors_of_nearly_one_size_share_memory_and_others_do_not() -> None:
    vectors = HostVectors()
    place = vectors.empty(1100).load().data_ptr()
    assert vectors.empty(1000).load().data_ptr() == place
    assert vectors.empty(0).elements == 0
    memory = RecycledMemory()
    memory.empty(int(1000 * FITS) + 1)
    memory.empty(1000)
    assert [kept.size for kept in memory._free] == [1000]  # the larger one doesn't fit, and goes


def test_a_saved_tensor_takes_no_more_room_than_its_numbers(tmp_path) -> None:
    memory = RecycledMemory()
    memory.empty(1100)
    torch.save(memory.empty(1000), tmp_path / "saved.pt")
    assert 4000 <= (tmp_path / "saved.pt").stat().st_size < 4000 + 2048
    assert memory.empty(1000).untyped_storage().nbytes() == 4000


def test_as_much_is_kept_as_is_said() -> None:
    memory = RecycledMemory()
    memory.keep(KEPT + 1)  # an outer optimizer with two slots
    held = [memory.empty(1 << 16) for _ in range(3 * KEPT)]
    held.clear()
    assert len(memory._free) == KEPT + 1


def test_no_more_is_kept_than_a_round_needs() -> None:
    memory = RecycledMemory()
    held = [memory.empty(1 << 16) for _ in range(3 * KEPT)]
    places = {tensor.data_ptr() for tensor in held}
    held.clear()
    assert len(memory._free) == KEPT
    assert memory.empty(1 << 16).data_ptr() in places


def test_what_nobody_wants_for_a_while_is_given_back() -> None:
    memory = RecycledMemory()
    for between in (IDLE_STEPS - 1, IDLE_STEPS):
        memory.empty(1000)
        for _ in range(between):
            memory.tidy()
        assert len(memory._free) == (1 if between < IDLE_STEPS else 0)


def test_threads_never_get_the_same_memory() -> None:
    memory, clashes = RecycledMemory(), []

    def work(number: int) -> None:
        for _ in range(500):
            tensor = memory.empty(64).fill_(number)
            if not bool((tensor == number).all()):
                clashes.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert clashes == []
