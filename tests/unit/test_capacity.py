"""gateway/fleet/capacity.py: engines are given what they run and their next work; what nobody knows limits nothing."""

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.fleet.capacity import ASCENT, has_room, learnt, of_others, room
from gateway.fleet.replica import Health, Load, Replica
from gateway.fleet.scrape import parse_load
from gateway.http1 import Address
from gateway.settings import QueueSettings
from tests.unit.splitting import thorough

SETTINGS = QueueSettings(backlog=0.1, kv_ceiling=0.95)


def replica(
    *,
    health: Health = Health.UP,
    stated: int | None = None,
    seen: float | None = None,
    ours: int = 0,
    others: int = 0,
    kv: float = 0.0,
    refused: bool = False,
) -> Replica:
    return Replica(
        "a",
        "m",
        Address("127.0.0.1", 1),
        health=health,
        load=Load(kv_usage=kv),
        in_flight=ours,
        calls_at_once=stated,
        learnt=seen,
        of_others=others,
        refused=refused,
    )


@pytest.mark.parametrize(
    ("of", "expected"),
    [
        pytest.param(replica(), math.inf, id="nobody knows what it can run: no guess throttles it"),
        pytest.param(replica(ours=5000), math.inf, id="whatever it has"),
        pytest.param(replica(stated=16), 18, id="what it runs, and a tenth as its next work"),
        pytest.param(replica(stated=16, ours=10), 8, id="less what this gateway has there"),
        pytest.param(replica(stated=16, ours=10, others=5), 3, id="less what others have there"),
        pytest.param(replica(stated=16, ours=18), 0, id="no more than that"),
        pytest.param(replica(stated=16, ours=30, others=9), 0, id="nor less than none"),
        pytest.param(replica(stated=1), 2, id="the next work is one call at least"),
        pytest.param(replica(stated=256), 282, id="of many calls it is many, rounded up"),
        pytest.param(replica(seen=8.0, ours=4), 5, id="what was learnt counts where nothing is stated"),
        pytest.param(replica(seen=8.9, ours=4), 5, id="in whole calls"),
        pytest.param(replica(stated=4, seen=100.0), 5, id="and only there"),
        pytest.param(replica(stated=16, ours=1, kv=0.96), 0, id="a full KV cache is full whatever the count"),
        pytest.param(replica(ours=1, kv=0.96), 0, id="also where the count is not known"),
        pytest.param(replica(stated=16, ours=1, kv=0.95), 17, id="at the ceiling it is not above it"),
        pytest.param(replica(stated=16, others=40), 1, id="where this gateway has none it may always send one"),
        pytest.param(replica(stated=16, kv=0.99), 1, id="or numbers left by aborted calls would stay for ever"),
        pytest.param(replica(stated=16, refused=True), 0, id="none to an engine that has just refused one"),
        pytest.param(replica(stated=16, health=Health.DOWN), 0, id="none to an engine that is down"),
        pytest.param(replica(stated=16, health=Health.UNKNOWN), 0, id="none before the first probe"),
    ],
)
def test_how_many_more_calls_a_replica_can_take(of: Replica, expected: float) -> None:
    """What it runs and its next work, less what is known to be there."""
    assert room(of, SETTINGS) == expected


@pytest.mark.parametrize(
    ("replicas", "granted", "expected"),
    [
        pytest.param((replica(stated=4), replica(stated=4, ours=2)), 7, True, id="the sum of its replicas"),
        pytest.param((replica(stated=4), replica(stated=4, ours=2)), 8, False, id="less the turns on their way"),
        pytest.param((replica(stated=4, ours=5), replica()), 100, True, id="one that nobody knows takes any"),
        pytest.param((replica(health=Health.DOWN), replica(stated=4, ours=5)), 0, False, id="down and full"),
        pytest.param((replica(health=Health.DOWN), replica(health=Health.UNKNOWN)), 9, True, id="none is up"),
        pytest.param((), 0, True, id="none is there"),
    ],
)
def test_whether_a_pool_takes_one_more_call(replicas: tuple[Replica, ...], granted: int, expected: bool) -> None:
    """A turn that was given and is on no replica yet is counted once; nobody waits where no engine is up."""
    assert has_room(replicas, granted, SETTINGS) is expected


@pytest.mark.parametrize(
    ("before", "load", "after"),
    [
        pytest.param(None, Load(), None, id="an idle engine shows nothing"),
        pytest.param(None, Load(running=200), None, id="nor one that lets nobody wait"),
        pytest.param(None, Load(running=16, waiting=4), 16, id="calls wait in it: it runs what it can"),
        pytest.param(None, Load(running=2, waiting=48), 40, id="prompts still being read: approached from above"),
        pytest.param(40, Load(running=30, waiting=20), 32, id="step by step"),
        pytest.param(32, Load(running=30, waiting=20), 30, id="never below what it runs"),
        pytest.param(30, Load(running=30, waiting=3), 30, id="where it stays"),
        pytest.param(1000, Load(running=8, waiting=8), 12.8, id="what it was never given was never shown"),
        pytest.param(30, Load(running=44, waiting=3), 44, id="it runs more than that"),
        pytest.param(30, Load(running=33), 41.25, id="it runs more and lets nobody wait: it is tried"),
        pytest.param(30, Load(running=12), 30, id="a quiet hour says nothing"),
        pytest.param(30, Load(), 30, id="nor does an idle one"),
        pytest.param(None, Load(running=0, waiting=1), 1, id="it runs one at least"),
        pytest.param(None, Load(running=9, waiting=3, deferred=3), None, id="waiting for an adapter is not for room"),
        pytest.param(None, Load(running=9, waiting=4, deferred=3), 9, id="waiting for both is"),
    ],
)
def test_what_a_look_at_an_engine_teaches(before: float | None, load: Load, after: float | None) -> None:
    """An engine in which calls wait for room runs as many as it can."""
    assert learnt(before, load) == after


class Engine:
    """Runs `size` calls, lets the others wait, and is always asked for more than it can take."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.held = 0

    def looked_at(self) -> Load:
        return Load(running=min(self.held, self.size), waiting=max(0, self.held - self.size))


@pytest.mark.parametrize("size", [1, 2, 5, 16, 256])
@pytest.mark.parametrize("burst", [1, 10, 1000])
def test_an_engines_size_is_found_from_either_side(size: int, burst: int) -> None:
    """From a first burst that was far too large as from a first impression that was far too small."""
    for seen in (None, 1.0):
        engine, one = Engine(size), replica(seen=seen, ours=1)
        engine.held = burst
        for _ in range(60):
            one.learnt = learnt(one.learnt, engine.looked_at())
            # Calls end and others come, as many as there is room for.
            one.in_flight = 0
            engine.held = int(min(room(one, SETTINGS), 1000 * size))
        assert one.learnt is None or size <= one.learnt <= ASCENT * size
        if one.learnt is not None:
            assert size < engine.held <= max(size + 2, 1.1 * ASCENT * size + 1)


def test_an_engine_that_may_run_more_is_given_more_within_seconds() -> None:
    """A wrong first impression throttles no engine for long: a probe a second, from 2 calls to 256."""
    engine, one, looks = Engine(256), replica(seen=2.0), 0
    while engine.held <= engine.size:
        engine.held = int(room(one, SETTINGS))
        one.learnt = learnt(one.learnt, engine.looked_at())
        looks += 1
    assert looks < 25


@given(st.lists(st.builds(Load, st.integers(0, 300), st.integers(0, 300)), min_size=1, max_size=30))
@thorough
def test_what_is_learnt_is_never_less_than_what_runs(loads: list[Load]) -> None:
    """Once something was learnt it is never forgotten, and never below what an engine is seen to do."""
    found = [learnt(None, loads[0])]
    for load in loads[1:]:
        found.append(learnt(found[-1], load))
    for (before, after), load in zip(pairwise(found), loads[1:], strict=True):
        assert before is None or after is not None
        assert after is None or after >= max(1, load.running)


@pytest.mark.parametrize(
    ("load", "in_flight", "expected"),
    [
        pytest.param(Load(running=8, waiting=2), 4, 6, id="what the engine holds beyond ours"),
        pytest.param(Load(running=3), 4, 0, id="one of ours has not reached it yet"),
        pytest.param(Load(), 0, 0, id="an engine that tells nothing"),
    ],
)
def test_calls_of_other_gateways_are_what_an_engine_holds_beyond_ours(
    load: Load, in_flight: int, expected: int
) -> None:
    """Never less than none."""
    assert of_others(load, in_flight) == expected


def test_calls_that_wait_for_an_adapter_are_told_apart() -> None:
    """vLLM splits those that wait by reason; an engine with several ranks has a line for each."""
    exposition = b"""
vllm:num_requests_running{engine="0",model_name="m"} 3.0
vllm:num_requests_waiting{engine="0",model_name="m"} 4.0
vllm:num_requests_waiting_by_reason{engine="0",model_name="m",reason="capacity"} 2.0
vllm:num_requests_waiting_by_reason{engine="0",model_name="m",reason="deferred"} 2.0
vllm:num_requests_waiting_by_reason{engine="1",model_name="m",reason="deferred"} 1.0
vllm:num_requests_waiting_by_reason{engine="2",model_name="m",reason="deferred"} NaN
"""
    assert parse_load(exposition) == Load(running=3, waiting=4, deferred=3)
