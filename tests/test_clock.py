import threading

from lowcomm.clock import process_cpu_s, threads_cpu_s

SHARE_S = 0.02
"""Processor seconds to use: many times what a thread takes that only starts and waits."""


def test_processor_time_is_counted_by_thread() -> None:
    worked, end = threading.Event(), threading.Event()

    def work() -> None:
        own = threading.get_native_id()
        while threads_cpu_s()[own] < SHARE_S:
            pass
        worked.set()
        end.wait()

    busy, idle = threading.Thread(target=work), threading.Thread(target=end.wait)
    before_s = process_cpu_s()
    busy.start()
    idle.start()
    try:
        assert worked.wait(30)
        used = threads_cpu_s()
        assert used[busy.native_id] >= SHARE_S > used[idle.native_id]
        assert process_cpu_s() - before_s >= SHARE_S
    finally:
        end.set()
        busy.join()
        idle.join()
