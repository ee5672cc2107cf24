"""When a dead child is started again, after how long, and when it is given up."""

import pytest

from engine_config.supervision.restarts import Death, GiveUp, Policy, Record, Restart, after_death

POLICY = Policy(first_pause_s=1, longest_pause_s=10, healthy_s=100, window_s=1000, most_deaths=5)


def serving(at_s: float, ready_for_s: float = 10) -> Death:
    return Death(at_s, "it was killed", lasting=False, ready_for_s=ready_for_s)


def loading(at_s: float, cause: str = "out of memory", lasting: bool = False) -> Death:
    return Death(at_s, cause, lasting, ready_for_s=None)


def verdicts(*deaths: Death, jitter: float = 0.999_999) -> list[Restart | GiveUp]:
    record, said = Record(), []
    for death in deaths:
        record, verdict = after_death(record, death, POLICY, jitter)
        said.append(verdict)
    return said


def pauses(*deaths: Death, jitter: float = 0.999_999) -> list[float]:
    return [round(verdict.pause_s, 3) for verdict in verdicts(*deaths, jitter=jitter) if isinstance(verdict, Restart)]


def test_the_pause_doubles_with_every_death_in_the_window() -> None:
    assert pauses(*map(serving, (0, 50, 100, 150))) == [1, 2, 4, 8]


def test_the_pause_has_a_longest() -> None:
    patient = Policy(first_pause_s=1, longest_pause_s=3, most_deaths=99)
    record = Record(deaths_s=tuple(range(20)), proven=True)
    assert after_death(record, serving(21), patient, 0.0)[1] == Restart(1.5)


@pytest.mark.parametrize(("jitter", "pause_s"), [(0.0, 0.5), (0.5, 0.75), (0.999_999, 1.0)])
def test_jitter_takes_away_up_to_half_of_the_pause(jitter: float, pause_s: float) -> None:
    """Children that died together do not load together."""
    assert pauses(serving(0), jitter=jitter) == [pause_s]


def test_a_healthy_period_makes_the_record_clean() -> None:
    assert pauses(serving(0), serving(50), serving(200, ready_for_s=100), serving(210)) == [1, 2, 1, 2]


def test_deaths_before_the_window_are_forgotten() -> None:
    assert pauses(serving(0), serving(10), serving(1010), serving(1011)) == [1, 2, 1, 2]


def test_too_many_deaths_in_the_window_are_given_up() -> None:
    assert verdicts(*map(serving, range(5)))[-1] == GiveUp("it died 5 times within 16.6667 minutes")


def test_a_lasting_cause_is_given_up_at_once() -> None:
    assert verdicts(loading(0, lasting=True)) == [GiveUp("it cannot start like this")]


def test_a_cause_that_only_seems_lasting_is_tried_again_by_a_child_that_was_ready_before() -> None:
    """It did start like this once: the disk may be mended, the GPU may come back."""
    assert isinstance(verdicts(serving(0), loading(10, lasting=True))[-1], Restart)


def test_a_child_that_was_never_ready_may_fail_once_without_explanation() -> None:
    said = verdicts(loading(0), loading(10))
    assert isinstance(said[0], Restart)
    assert said[1] == GiveUp("it failed to start 2 times for the same reason")


def test_a_child_that_was_ready_before_may_fail_twice_alike() -> None:
    said = verdicts(serving(0), loading(10), loading(20), loading(30))
    assert isinstance(said[2], Restart)
    assert said[3] == GiveUp("it failed to start 3 times for the same reason")


def test_failures_for_different_reasons_are_not_alike() -> None:
    said = verdicts(loading(0, "a"), loading(1, "b"), loading(2, "a"), loading(3, "b"))
    assert all(isinstance(verdict, Restart) for verdict in said)


def test_being_ready_in_between_ends_a_row_of_failures() -> None:
    said = verdicts(serving(0), loading(10), loading(20), serving(30), loading(200))
    assert isinstance(said[2], Restart)
    assert said[-1] == GiveUp("it died 5 times within 16.6667 minutes")
