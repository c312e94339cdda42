"""How many threads the model computes with, on a machine that has other things to do."""

import os
import subprocess
import sys
import time

from engine.threads import ThreadCount, default_threads


def test_there_is_at_least_one_thread_and_at_most_one_for_each_cpu() -> None:
    n_cpus = len(os.sched_getaffinity(0))
    assert 1 <= default_threads() <= n_cpus
    assert ThreadCount(1).look() == 1
    assert 1 <= ThreadCount(n_cpus).look() <= n_cpus


def test_busy_machine_leaves_one_thread() -> None:
    n_cpus = len(os.sched_getaffinity(0))
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2 * n_cpus)]
    try:
        count = ThreadCount(n_cpus)
        deadline = time.monotonic() + 20
        while count.look() > 1:
            assert time.monotonic() < deadline
    finally:
        for process in busy:
            process.kill()
            process.wait()
