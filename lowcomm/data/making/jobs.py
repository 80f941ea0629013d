"""Work that is divided over processes: each job is a function and what it is told; what it makes is a file.

With one process all is done in this one. Others are started once and get a job after the other through a pipe
of their own, so one whose parent is killed reads its end and goes, and one that is killed is noticed at once.
"""

from __future__ import annotations

import multiprocessing
import resource
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any, TypeVar

from lowcomm.errors import DataError, LowcommError, StorageError

J = TypeVar("J")


class Pool:
    """Processes that do jobs; a context manager that ends them.

    Args:
        processes: how many.
    """

    def __init__(self, processes: int) -> None:
        self.processes = processes
        self._workers: dict[Any, SpawnProcess] = {}
        self._peaks: dict[Any, int] = {}

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *raised: object) -> None:
        for connection, worker in self._workers.items():
            connection.close()
            if raised[0] is not None:
                worker.terminate()
        for worker in self._workers.values():
            worker.join()

    @property
    def peak_bytes(self) -> int:
        """The most memory of each process so far, added up; pages that they share are counted in each."""
        return _peak_bytes() + sum(self._peaks.values())

    def run(self, function: Callable[[J], object], jobs: Sequence[J]) -> Iterator[int]:
        """Do all jobs; which one has ended, one after the other.

        Raises:
            LowcommError: as a job raised it.
            DataError: a process was killed.
        """
        if self.processes == 1 or len(jobs) < 2:
            for number, job in enumerate(jobs):
                function(job)
                yield number
            return
        while len(self._workers) < min(self.processes, len(jobs)):
            self._start()
        waiting, busy = list(enumerate(jobs))[::-1], dict[Any, int]()
        idle = list(self._workers)
        while waiting or busy:
            while idle and waiting:
                connection = idle.pop()
                busy[connection], job = waiting.pop()
                connection.send((function, job))
            for connection in wait(list(busy)):
                self._check_answer(connection)
                idle.append(connection)
                yield busy.pop(connection)

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        worker = context.Process(target=_work, args=(theirs,), daemon=True)
        worker.start()
        theirs.close()
        self._workers[ours] = worker

    def _check_answer(self, connection: Any) -> None:
        try:
            error, self._peaks[connection] = connection.recv()
        except (EOFError, ConnectionError) as died:
            worker = self._workers[connection]
            worker.join()
            raise DataError(
                f"a process of the build ended with code {worker.exitcode} (-9: mostly too little memory); "
                "the same command, with fewer --processes, goes on where it was"
            ) from died
        if isinstance(error, LowcommError):
            raise error
        if error is not None:
            raise RuntimeError(error)


def _peak_bytes() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def _work(connection: Connection) -> None:
    """A process of the pool: jobs until the other end is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the parent ends the others
    while True:
        try:
            function, job = connection.recv()
        except EOFError:
            return
        error: LowcommError | str | None = None
        try:
            function(job)
        except LowcommError as raised:
            error = raised
        except OSError as raised:
            error = StorageError(f"{raised.filename or 'a file of the build'}: {raised.strerror or raised}")
        except Exception:  # the boundary of a process: told where the job was given
            error = traceback.format_exc()
        try:
            connection.send((error, _peak_bytes()))
        except BrokenPipeError:
            return
