"""What the benchmark reads of the machine, and how it divides its cores."""

import os

import pytest

from benchmarks.cores import CorePlan, plan
from benchmarks.measuring import Core, Stat, read_cores, read_stat, took, tree

STAT = (
    "4711 (a (b) c) S 12 4711 4711 0 -1 4194304 900 0 0 0 150 50 20 5 20 0 3 0 1000 200000 2560 18446744073709551615"
    " 1 1 0 0 0 0 0 0 0 0 0 0 17 0 0 0 0 0 0"
)


def test_a_process_is_read_whatever_it_is_called() -> None:
    """User and system time, its own and its reaped children's; resident memory in pages."""
    assert read_stat(STAT, ticks=100, page=4096) == Stat(parent=12, cpu_s=2.25, rss_bytes=2560 * 4096)


def test_a_tree_is_a_process_and_all_that_descend_from_it() -> None:
    """Workers of workers too; strangers not."""
    parents = {1: 0, 10: 1, 11: 10, 12: 11, 20: 1}
    assert tree(10, parents) == {10, 11, 12}
    assert tree(99, parents) == set()


def test_this_process_takes_time_and_memory() -> None:
    """The real /proc."""
    now = took(os.getpid())
    assert now.cpu_s > 0
    assert now.rss_mib > 5


def test_busy_and_stolen_time_are_read_core_by_core() -> None:
    """Idle time and waiting for disks are not busy, interrupts are."""
    text = "cpu  1 1 1 1 1 1 1 1 0 0\ncpu0 100 10 40 900 7 3 2 5 0 0\ncpu1 0 0 0 900 0 0 0 0 0 0\nintr 5\n"
    assert read_cores(text, ticks=100) == {0: Core(1.55, 0.05), 1: Core(0.0, 0.0)}


@pytest.mark.parametrize(
    ("cores", "expected"),
    [
        ({0: 0}, CorePlan((0,), (0,), (0,))),
        ({0: 0, 1: 1}, CorePlan((0,), (1,), (1,))),
        ({2: 2, 5: 5, 7: 7}, CorePlan((2,), (5,), (7,))),
        ({0: 0, 1: 0, 2: 2, 3: 2}, CorePlan((0,), (2,), (3,))),
        ({0: 0, 1: 1, 2: 2, 3: 3, 4: 4, 5: 5}, CorePlan((0,), (1, 2), (3, 4))),
    ],
    ids=["one core", "two", "three", "two with siblings", "six"],
)
def test_the_gateway_has_a_core_of_its_own_where_there_are_two(cores: dict[int, int], expected: CorePlan) -> None:
    """And its sibling stays idle where there are others."""
    found = plan(cores)
    assert found == expected
    assert found.apart is (len(cores) > 1)
