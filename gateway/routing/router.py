"""Which replica should serve a call: filters, then weighted scorers, then a ranking. Decides; does nothing."""

import random
from collections.abc import Mapping
from typing import NamedTuple

from gateway.call import Call
from gateway.fleet.replica import Replica, Snapshot
from gateway.routing.filters import FILTERS
from gateway.routing.scorers import Scorer, free_kv, idleness
from gateway.settings import RoutingSettings


class Ranking(NamedTuple):
    """Replicas, best first, and the score that each had. Empty when nothing may serve the call."""

    replicas: tuple[Replica, ...]
    scores: tuple[float, ...]

    def receipt(self) -> str:
        """How the decision came about, in one line: `a=0.83 b=0.41`."""
        return " ".join(
            f"{replica.name}={score:.3f}" for replica, score in zip(self.replicas, self.scores, strict=True)
        )


class Router:
    """Ranks replicas with the weights of the settings."""

    def __init__(self, settings: RoutingSettings, rng: random.Random) -> None:
        weights = {idleness: settings.idleness, free_kv: settings.free_kv}
        self._scorers: Mapping[Scorer, float] = {score: weight for score, weight in weights.items() if weight}
        self._rng = rng

    def rank(self, call: Call, fleet: Snapshot) -> Ranking:
        return rank(call, fleet, self._scorers, self._rng)


def rank(call: Call, fleet: Snapshot, scorers: Mapping[Scorer, float], rng: random.Random) -> Ranking:
    """Best first; equals in random order, so that many gateways do not all choose the same replica."""
    able = [replica for replica in fleet.of(call.model) if all(keep(call, replica) for keep in FILTERS)]
    scored = [
        (sum(weight * score(call, replica) for score, weight in scorers.items()), rng.random(), replica)
        for replica in able
    ]
    scored.sort(key=lambda entry: entry[:2], reverse=True)
    return Ranking(tuple(replica for _, _, replica in scored), tuple(score for score, _, _ in scored))
