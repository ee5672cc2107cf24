"""Which replica should serve a call: filters, then weighted scorers, then a ranking. Decides; does nothing."""

import random
from collections.abc import Callable, Sequence
from operator import itemgetter
from typing import NamedTuple

from gateway.call import Call
from gateway.fleet.replica import Replica, Snapshot
from gateway.routing.filters import FILTERS
from gateway.routing.scorers import Scorer, free_kv, idleness
from gateway.settings import RoutingSettings

HasRoom = Callable[[Replica], bool]
"""Whether a replica takes one more call now."""


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

    def __init__(self, settings: RoutingSettings, rng: random.Random, has_room: HasRoom = lambda replica: True) -> None:
        weights = {idleness: settings.idleness, free_kv: settings.free_kv}
        self._scorers = tuple((score, weight) for score, weight in weights.items() if weight)
        self._rng = rng
        self._has_room = has_room

    def rank(self, call: Call, fleet: Snapshot) -> Ranking:
        return rank(call, fleet, self._scorers, self._rng, self._has_room)


def rank(
    call: Call, fleet: Snapshot, scorers: Sequence[tuple[Scorer, float]], rng: random.Random, has_room: HasRoom
) -> Ranking:
    """Best first, and those that are full behind all others, whatever else speaks for them: a call had its turn because
    one has room. Equals are in random order, so that many gateways do not all choose the same replica.
    """
    able = list(fleet.of(call.model))
    for keep in FILTERS:
        able = [replica for replica in able if keep(call, replica)]
    scored = []
    for replica in able:
        total = 0.0
        for score, weight in scorers:
            total += weight * score(call, replica)
        scored.append((has_room(replica), total, rng.random(), replica))
    scored.sort(key=itemgetter(0, 1, 2), reverse=True)
    return Ranking(tuple([entry[3] for entry in scored]), tuple([entry[1] for entry in scored]))
