"""A process that falls silent is ended by the one that listens to it; one that never was heard is left alone."""

from __future__ import annotations

import os
import socket
import subprocess
import time

import pytest

from microplane.training import heartbeat
from microplane.training.heartbeat import Heartbeat, this_machine


@pytest.fixture
def ring(monkeypatch):
    """Two of a ring in this process, of which the second one's id is that of a process that sleeps."""
    monkeypatch.setattr(heartbeat, "BEAT", 0.1)
    monkeypatch.setattr(heartbeat, "GRACE", 60.0)
    sleeper, said = subprocess.Popen(["sleep", "60"]), []
    first, second = Heartbeat(0, said.append), Heartbeat(1, said.append)
    one, two = (beat.address("127.0.0.1") for beat in (first, second))
    assert (one[2], one[3]) == (this_machine(), os.getpid())
    yield first, second, [one, (*two[:3], sleeper.pid)], sleeper, said
    first.stop()
    second.stop()
    sleeper.kill()
    sleeper.wait()


def test_who_falls_silent_is_ended(ring):
    first, second, addresses, sleeper, said = ring
    first.start(addresses)
    second.start(addresses)
    time.sleep(0.1 * heartbeat.SILENT * 1.3)
    assert sleeper.poll() is None
    second.stop()
    assert sleeper.wait(timeout=20) == -9
    assert said == [f"process 1 on {socket.gethostname()} has not answered for 1 seconds, so it was given up"]


def test_who_was_never_heard_is_left_alone(ring):
    first, _, addresses, sleeper, said = ring
    first.start(addresses)
    time.sleep(0.1 * heartbeat.SILENT * 1.3)
    assert sleeper.poll() is None
    assert not said


def test_a_number_of_another_machine_ends_nothing_here(ring):
    first, second, addresses, sleeper, said = ring
    addresses[1] = (*addresses[1][:2], f"{socket.gethostname()} of other containers", sleeper.pid)
    first.start(addresses)
    second.start(addresses)
    time.sleep(0.3)
    second.stop()
    deadline = time.monotonic() + 20
    while not said and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.3)
    assert said
    assert sleeper.poll() is None
