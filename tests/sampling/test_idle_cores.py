"""Threads follow the cores that other programs leave."""

import pytest
import torch

from lab_utils.sampling import idle_cores


@pytest.fixture
def machine(monkeypatch):
    """Return a function that lets seconds pass on a machine of four cores, and returns the threads used afterwards."""
    threads, now = 4, (0.0, 0.0, 0.0)

    def use(number: int) -> None:
        nonlocal threads
        threads = number

    def passes(seconds: float, idle: float, own: float) -> int:
        nonlocal now
        now = (now[0] + seconds, now[1] + idle * seconds, now[2] + own * seconds)
        idle_cores.use_idle_cores()
        return threads

    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(torch, "set_num_threads", use)
    monkeypatch.setattr(idle_cores, "readings", lambda: now)
    monkeypatch.setattr(idle_cores, "last", now)
    monkeypatch.setattr(idle_cores, "most", 4)
    return passes


@pytest.mark.parametrize(("idle", "own", "threads"), [
    (0.0, 4.0, 4),  # alone
    (3.0, 1.0, 4),  # alone, in a part that uses one core
    (0.2, 3.5, 4),  # others take little
    (0.0, 3.4, 3),  # a program shares a core with us
    (0.0, 3.0, 3),  # it has the core now, and we have the others
    (1.0, 2.6, 4),  # it has ended
    (0.0, 0.1, 1),  # others have nearly everything
    (60.0, 4.0, 4),  # a large machine of which we have four cores
])
def test_as_many_threads_as_cores_that_others_leave(machine, idle, own, threads):
    assert machine(5, idle, own) == threads


def test_the_next_look_is_at_what_happened_since(machine):
    assert machine(5, 0.0, 3.4) == 3
    assert machine(0.5, 4.0, 0.0) == 3, "too early"
    assert machine(0.6, 4.0, 0.0) == 4
    assert machine(2, 0.0, 2.0) == 2


def test_a_number_in_the_environment_stays(machine, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    assert machine(5, 0.0, 1.0) == 4


def test_the_readings_are_those_of_this_machine():
    (t0, idle0, own0), _, (t1, idle1, own1) = idle_cores.readings(), sum(range(3_000_000)), idle_cores.readings()
    assert t1 > t0 and idle1 >= idle0 and 0 < own1 - own0 <= 1.1 * (t1 - t0) + 0.1
