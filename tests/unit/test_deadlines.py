"""gateway/deadlines.py: one timer, and everything comes due in its order and at its time."""

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.deadlines import ROUNDING_S, Deadlines
from tests.unit.by_hand import HandLoop
from tests.unit.splitting import thorough

DELAY_S = 10.0


@dataclass
class Timed:
    """Deadlines on a loop that is turned by hand; `due` is what came due, and when, since the beginning."""

    loop: HandLoop = field(default_factory=HandLoop)
    due: list[tuple[str, float]] = field(default_factory=list)
    then: Callable[[str], None] = lambda thing: None

    def __post_init__(self) -> None:
        self.begun_s = self.loop.now_s
        self.deadlines: Deadlines[str] = Deadlines(DELAY_S, self._due)

    def _due(self, thing: str) -> None:
        assert thing not in self.deadlines, "it is stopped by then"
        self.due.append((thing, round(self.passed_s, 1)))
        self.then(thing)

    @property
    def passed_s(self) -> float:
        return self.loop.now_s - self.begun_s

    def start(self, *things: str) -> "Timed":
        with self.loop.running():
            for thing in things:
                self.deadlines.start(thing)
        return self

    def at(self, seconds: float) -> "Timed":
        """Lets time pass until so many seconds after the beginning."""
        self.loop.pass_time(self.begun_s + seconds - self.loop.now_s)
        return self


def test_things_come_due_in_the_order_in_which_they_were_started() -> None:
    """Each after its own delay, and not before."""
    timed = Timed().start("a").at(3).start("b", "c").at(7).start("d")
    assert timed.at(9.9).due == []
    assert timed.at(12.9).due == [("a", 10.0)]
    assert timed.at(13.1).due == [("a", 10.0), ("b", 13.0), ("c", 13.0)]
    assert timed.at(100).due == [("a", 10.0), ("b", 13.0), ("c", 13.0), ("d", 17.0)]


def test_starting_again_begins_the_time_anew() -> None:
    """And the thing comes due once, after those that were started before that."""
    timed = Timed().start("a", "b").at(5).start("a")
    assert timed.at(100).due == [("b", 10.0), ("a", 15.0)]


def test_a_thing_that_is_stopped_never_comes_due() -> None:
    """Nor does stopping it twice, or something that never ran, matter to the others."""
    timed = Timed().start("a", "b", "c")
    for thing in ("a", "a", "unknown"):
        timed.deadlines.stop(thing)
    assert "a" not in timed.deadlines
    assert "b" in timed.deadlines
    assert timed.at(100).due == [("b", 10.0), ("c", 10.0)]


def test_what_is_left_after_a_look_has_its_own_time() -> None:
    """The one timer is set anew for the oldest thing that is left, also where the one it was for is stopped."""
    timed = Timed().start("a").at(2).start("b").at(4).start("c")
    timed.deadlines.stop("a")
    assert timed.at(11).due == []
    timed.deadlines.stop("b")
    assert timed.at(13.9).due == []
    assert timed.at(14).due == [("c", 14.0)]


def test_what_is_started_after_all_was_quiet_comes_due() -> None:
    """Whether nothing was left by coming due, or by being stopped while the timer runs on."""
    timed = Timed().start("a").at(20).start("b").at(22)
    timed.deadlines.stop("b")
    timed.at(25).start("c")
    assert timed.at(34.9).due == [("a", 10.0)]
    assert timed.at(100).due == [("a", 10.0), ("c", 35.0)]


def test_there_is_one_timer_and_none_when_there_is_nothing_to_wait_for() -> None:
    """However many things there are."""
    timed = Timed()
    assert timed.loop.timers == []
    timed.start(*map(str, range(1000)))
    for thing in map(str, range(500)):
        timed.start(thing)
    assert len(timed.loop.timers) == 1
    timed.at(100)
    assert len(timed.due) == 1000
    assert timed.loop.timers == []


def test_an_event_loop_that_rounds_down_wakes_once() -> None:
    """What is due by less than a millisecond is due: no look for the sake of a rounding error."""
    timed = Timed().start("a").at(DELAY_S - ROUNDING_S / 2)
    timed.deadlines._look()
    assert [thing for thing, _ in timed.due] == ["a"]


def test_a_thing_that_is_started_while_others_are_due_has_its_whole_time() -> None:
    """From within `due`, too: itself or another one."""
    timed = Timed()
    timed.then = lambda thing: timed.deadlines.start("c") if thing == "a" else None
    timed.start("a", "b")
    assert timed.at(19.9).due == [("a", 10.0), ("b", 10.0)]
    assert timed.at(20).due[2:] == [("c", 20.0)]
    timed.then = timed.deadlines.start
    timed.start("d")
    assert timed.at(50.1).due[3:] == [("d", 30.0), ("d", 40.0), ("d", 50.0)]


def test_a_thing_that_is_started_from_within_makes_nobody_late() -> None:
    """Those that were started before it are still due before it."""
    timed = Timed()
    timed.then = lambda thing: timed.deadlines.start("c") if thing == "a" else None
    timed.start("a").at(5).start("b")
    assert timed.at(100).due == [("a", 10.0), ("b", 15.0), ("c", 20.0)]
    assert timed.loop.timers == []


def test_things_may_be_stopped_from_within() -> None:
    """What one of them does may end the time of another that would have been next."""
    timed = Timed()
    timed.then = lambda thing: timed.deadlines.stop("b")
    timed.start("a", "b", "c")
    assert timed.at(100).due == [("a", 10.0), ("c", 10.0)]


def test_closing_from_within_ends_it() -> None:
    """Nothing more comes due, and no timer is left."""
    timed = Timed()
    timed.then = lambda thing: timed.deadlines.close()
    timed.start("a", "b").at(5).start("c")
    assert timed.at(100).due == [("a", 10.0)]
    assert timed.loop.timers == []


def test_one_that_fails_takes_none_with_it() -> None:
    """The others still come due, each in its time."""

    def fail(thing: str) -> None:
        if thing == "a":
            raise RuntimeError("x")

    timed = Timed()
    timed.then = fail
    timed.start("a", "b").at(5).start("c")
    timed.at(100)
    assert [thing for thing, _ in timed.due] == ["a", "b", "c"]
    assert timed.due[2] == ("c", 15.0)
    assert len(timed.loop.errors) == 1, "and it is told"


def test_closing_leaves_neither_things_nor_a_timer() -> None:
    """And it can be done twice, or before anything was started."""
    timed = Timed()
    timed.deadlines.close()
    timed.start("a", "b")
    timed.deadlines.close()
    timed.deadlines.close()
    assert timed.loop.timers == []
    assert "a" not in timed.deadlines
    assert timed.at(100).due == []


def test_deadlines_print_their_story() -> None:
    """The delay, and how many run."""
    timed = Timed()
    assert repr(timed.deadlines) == "<Deadlines of 10 s: 0 running>"
    timed.start("a", "b", "a")
    assert repr(timed.deadlines) == "<Deadlines of 10 s: 2 running>"
    assert repr(timed.at(100).deadlines) == "<Deadlines of 10 s: 0 running>"
    assert repr(Deadlines[str](0.25, timed._due)) == "<Deadlines of 0.25 s: 0 running>"


def test_deadlines_need_a_running_loop_only_to_start() -> None:
    """They are built before one runs."""
    with pytest.raises(RuntimeError):
        Deadlines(DELAY_S, print).start("a")


@thorough
@given(
    st.lists(
        st.tuples(st.sampled_from(["start", "stop", "wait"]), st.sampled_from("abcd"), st.sampled_from([1, 3, 9])),
        max_size=40,
    )
)
def test_any_history_agrees_with_a_timer_for_each_thing(history: list[tuple[str, str, int]]) -> None:
    """The one timer is a saving, and nothing else."""
    timed, ends_s, expected = Timed(), dict[str, float](), list[tuple[str, float]]()
    for deed, thing, seconds in [*history, ("wait", "", 100)]:
        if deed == "start":
            timed.start(thing)
            ends_s.pop(thing, None)
            ends_s[thing] = round(timed.passed_s + DELAY_S, 1)
        elif deed == "stop":
            timed.deadlines.stop(thing)
            ends_s.pop(thing, None)
        else:
            timed.at(timed.passed_s + seconds)
            due = [(name, end_s) for name, end_s in ends_s.items() if end_s <= timed.passed_s + ROUNDING_S]
            expected += due
            ends_s = {name: end_s for name, end_s in ends_s.items() if (name, end_s) not in due}
        assert timed.due == expected
        assert repr(timed.deadlines) == f"<Deadlines of 10 s: {len(ends_s)} running>"
    assert timed.loop.timers == []
