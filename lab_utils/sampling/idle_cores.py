"""Compute with the cores that no other program keeps busy.

The threads of an operation wait for the slowest of them. When one shares its core with another program, all take twice
as long, which is longer than with one thread less. On an idle machine torch's own number of threads is the best.

The number of threads can change the rounding of sums. Where this was measured, on an AMD EPYC, SFT and GRPO gave the
same weights with one thread as with two; PPO did not. OMP_NUM_THREADS fixes the number.
"""

from __future__ import annotations

import os
import time

import psutil
import torch

SECONDS = 1.0  # a shorter look at the machine says little
TOLERANCE = 0.4  # of a core: what other programs may take of our cores before we leave one to them


def readings() -> tuple[float, float, float]:
    """Return the time, the idle seconds of all cores, and the CPU seconds of this process."""
    cores = psutil.cpu_times()
    return time.monotonic(), cores.idle + getattr(cores, "iowait", 0.0), time.process_time()


last, most = readings(), torch.get_num_threads()


def use_idle_cores() -> None:
    """Use as many threads as cores were idle or ours since the last look: at least one, at most torch's own number.

    The next look is a second later at the earliest. OMP_NUM_THREADS, if it is set, says how many threads to use.
    """
    global last
    now = readings()
    wall, idle, own = (b - a for a, b in zip(last, now, strict=True))
    if wall < SECONDS or "OMP_NUM_THREADS" in os.environ:
        return
    last = now
    torch.set_num_threads(max(1, min(most, int((idle + own) / wall + TOLERANCE))))
