"""gateway/routing: filters, scorers and the ranking they make, as tables."""

import random
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.fleet.replica import Health, Load, Replica, Snapshot
from gateway.http1 import Address
from gateway.routing.filters import FILTERS, is_up
from gateway.routing.router import Router
from gateway.routing.scorers import free_kv, idleness
from gateway.settings import RoutingSettings
from tests.unit.calls import a_call
from tests.unit.splitting import thorough

CALL = a_call()


def replica(name: str = "a", health: Health = Health.UP, in_flight: int = 0, **load: Any) -> Replica:
    return Replica(name, "m", Address("127.0.0.1", 1), health=health, load=Load(**load), in_flight=in_flight)


def names(router: Router, *replicas: Replica) -> list[str]:
    return [found.name for found in router.rank(CALL, Snapshot({"m": replicas})).replicas]


@pytest.mark.parametrize(("health", "kept"), [(Health.UP, True), (Health.DOWN, False), (Health.UNKNOWN, False)])
def test_only_what_is_known_to_be_up_is_ranked(health: Health, kept: bool) -> None:
    """A replica that was never probed serves nothing yet."""
    assert is_up(CALL, replica(health=health)) is kept
    assert is_up in FILTERS
    assert names(Router(RoutingSettings(), random.Random(1)), replica(health=health)) == ["a"] * kept


@pytest.mark.parametrize(
    ("subject", "score"),
    [
        pytest.param(replica(), 1.0, id="idle"),
        pytest.param(replica(in_flight=1), 1 / 2, id="one of ours"),
        pytest.param(replica(running=3), 1 / 4, id="three that it reports"),
        pytest.param(replica(running=1, waiting=2), 1 / 4, id="waiting counts"),
        pytest.param(replica(in_flight=3, running=1), 1 / 4, id="ours, of which it has not told yet"),
        pytest.param(replica(in_flight=1, running=3), 1 / 4, id="others' besides ours"),
    ],
)
def test_idleness_is_the_fewest_calls(subject: Replica, score: float) -> None:
    """Ours in flight, or what the engine reports, whichever is more."""
    assert idleness(CALL, subject) == score


@pytest.mark.parametrize(("usage", "score"), [(0.0, 1.0), (0.25, 0.75), (1.0, 0.0)])
def test_free_kv_is_what_is_free(usage: float, score: float) -> None:
    """1 for an empty cache, 0 for a full one."""
    assert free_kv(CALL, replica(kv_usage=usage)) == score


@pytest.mark.parametrize(
    ("replicas", "best_first"),
    [
        pytest.param([replica("a", in_flight=2), replica("b"), replica("c", in_flight=1)], ["b", "c", "a"], id="idle"),
        pytest.param([replica("a", running=9), replica("b", in_flight=1)], ["b", "a"], id="as the engine reports"),
        pytest.param([replica("a", kv_usage=0.9), replica("b", kv_usage=0.1)], ["b", "a"], id="free cache"),
        pytest.param(
            [replica("a", kv_usage=0.5), replica("b", in_flight=1)], ["a", "b"], id="idleness weighs more than cache"
        ),
        pytest.param(
            [replica("a", Health.DOWN), replica("b", in_flight=99)], ["b"], id="a busy one before one that is down"
        ),
        pytest.param([replica("a", Health.DOWN)], [], id="none is up"),
        pytest.param([], [], id="an empty pool"),
    ],
)
def test_the_best_comes_first(replicas: list[Replica], best_first: list[str]) -> None:
    """With the weights of the defaults."""
    for seed in range(10):
        assert names(Router(RoutingSettings(), random.Random(seed)), *replicas) == best_first


def test_a_scorer_without_weight_does_not_count() -> None:
    """Only the cache counts here."""
    settings = RoutingSettings(idleness=0)
    busy, full = replica("busy", in_flight=9), replica("full", kv_usage=0.9)
    assert names(Router(settings, random.Random(1)), full, busy) == ["busy", "full"]


def test_equals_are_shuffled() -> None:
    """Many gateways, or many calls at once, do not all choose the same replica; without weights all are equal."""
    for settings in (RoutingSettings(), RoutingSettings(idleness=0, free_kv=0)):
        router = Router(settings, random.Random(7))
        first = Counter(names(router, *(replica(name) for name in "abcd"))[0] for _ in range(400))
        assert set(first) == set("abcd")
        assert min(first.values()) > 60


def test_a_ranking_leaves_a_receipt() -> None:
    """Candidates and scores, best first, for the trace."""
    router = Router(RoutingSettings(), random.Random(1))
    ranking = router.rank(CALL, Snapshot({"m": (replica("a", in_flight=1, kv_usage=0.5), replica("b"))}))
    assert ranking.receipt() == "b=1.500 a=0.750"
    assert ranking.scores == (1.5, 0.75)
    assert router.rank(CALL, Snapshot({})).receipt() == ""


def test_a_model_is_served_by_its_own_pool_alone() -> None:
    """Whatever other models have."""
    others = Snapshot({"other": (replica("x"),)})
    assert Router(RoutingSettings(), random.Random(1)).rank(CALL, others).replicas == ()


@thorough
@given(
    st.lists(
        st.builds(
            replica,
            name=st.uuids().map(str),
            health=st.sampled_from(Health),
            in_flight=st.integers(0, 50),
            running=st.integers(0, 50),
            kv_usage=st.floats(0, 1),
        ),
        max_size=8,
    ),
    st.floats(0, 10),
    st.floats(0, 10),
    st.randoms(use_true_random=False),
)
def test_a_ranking_is_sorted_and_holds_all_that_are_up(
    replicas: list[Replica], idle_weight: float, kv_weight: float, rng: random.Random
) -> None:
    """Every replica that may serve the call, once, no worse one before a better one."""
    router = Router(RoutingSettings(idleness=idle_weight, free_kv=kv_weight), rng)
    ranking = router.rank(CALL, Snapshot({"m": tuple(replicas)}))
    assert {found.name for found in ranking.replicas} == {it.name for it in replicas if it.health is Health.UP}
    assert list(ranking.scores) == sorted(ranking.scores, reverse=True)
    for found, score in zip(ranking.replicas, ranking.scores, strict=True):
        assert score == pytest.approx(idle_weight * idleness(CALL, found) + kv_weight * free_kv(CALL, found))


def test_a_replica_that_is_full_comes_after_all_that_are_not() -> None:
    """Whatever speaks for it; it is not left out, for another may fail."""
    replicas = (replica("full"), replica("busy", in_flight=9, kv_usage=0.9))
    router = Router(RoutingSettings(), random.Random(1), lambda each: each.name != "full")
    assert names(router, *replicas) == ["busy", "full"]
    assert names(Router(RoutingSettings(), random.Random(1)), *replicas) == ["full", "busy"]
