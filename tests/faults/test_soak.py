"""The soak, for a moment: the gateway is afterwards what it was before; and a verdict that can tell when it is not."""

import asyncio
import signal
import sys
from collections.abc import Callable

import pytest

from tests.soak import CALLERS, faults
from tests.soak_callers import Tally
from tests.soak_processes import Sample

SECONDS = 12
PATIENCE_S = 240


@pytest.mark.anyio
async def test_under_a_mix_of_everything_nothing_is_lost_and_nothing_stays() -> None:
    """Processes as they are served: callers of every kind, engines that fail, are killed and come back."""
    soak = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.soak", "--seconds", str(SECONDS)),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        async with asyncio.timeout(PATIENCE_S):
            told, _ = await soak.communicate()
    finally:
        if soak.returncode is None:
            soak.send_signal(signal.SIGINT)  # It cleans up.
            await soak.wait()
    assert soak.returncode == 0, told.decode()


def measured(
    rss: Callable[[int], float] = lambda calls: 0,
    files: Callable[[int], int] = lambda calls: 0,
    left: int = 0,
    plateaus: int = 3,
) -> list[Sample]:
    """Samples of a soak with 5000 calls a plateau, in which memory and descriptors grow as told by calls so far."""
    samples = []
    for step in range(11 * plateaus):
        plateau, place = divmod(step, 11)
        calls, resting = 500 * (step - plateau), place == 10
        busy = left if resting else 10 + step % 3
        open_files = files(calls) + (17 if resting else 60 + 5 * (step % 3))
        # An allocator takes what it needs by the MiB, and some at the beginning.
        rss_bytes = 2**20 * (60 + (step % 2) * 0.25 + min(4.0, step * 0.4)) + rss(calls)
        samples.append(Sample(step, plateau, resting, calls, int(rss_bytes), open_files, busy, busy, CALLERS))
    return samples


def test_a_gateway_that_stays_what_it_was_is_without_fault() -> None:
    """What it takes to warm up and to breathe is no leak."""
    assert faults(measured(), Tally(), []) == []


@pytest.mark.parametrize("per_call", [1024, 2048, 100_000])
def test_a_kilobyte_a_call_is_a_leak(per_call: int) -> None:
    """Seen under load and from rest to rest."""
    found = faults(measured(rss=lambda calls: per_call * calls), Tally(), [])
    assert [fault.split(",")[0].partition(" by ")[0] for fault in found] == ["memory grows under load", "memory grew"]


@pytest.mark.parametrize("calls_per_file", [1, 10, 100])
def test_descriptors_that_stay_are_a_leak(calls_per_file: int) -> None:
    """Also if it is only one call of a hundred that keeps one."""
    found = faults(measured(files=lambda calls: calls // calls_per_file), Tally(), [])
    assert len(found) == 2
    assert "at rest than after the first plateau" in found[0]
    assert "descriptors grow under load" in found[1]


def test_what_is_counted_as_running_without_callers_is_a_fault() -> None:
    """At the end of every plateau."""
    assert faults(measured(left=2), Tally(), [])[0] == "plateau 1 left 2 running, 2 in flight"


def test_a_soak_that_was_cut_short_proves_nothing() -> None:
    """Without its plateaus there is nothing to compare."""
    assert faults(measured(plateaus=2), Tally(), []) == ["only 2 of 3 plateaus were reached"]


def test_wrong_replies_and_alarming_lines_are_faults() -> None:
    """The first ones are quoted."""
    tally = Tally()
    for what in ("ok", "error", "left", "it says something else"):
        tally.count("stream", what)
    assert faults(measured(), tally, ["a key"]) == [
        "a caller was told what is not so (1 times): stream: it says something else",
        "logged: a key",
    ]
