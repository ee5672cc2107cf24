"""What a call costs, in millionths of the cost unit: by its model's price, or by the accelerator time it took.

A model without a price costs its replica's time: calls that share a replica share what an hour of its accelerators
costs. What that comes to for a token is learnt, because a budget is asked before the time is known.
"""

import math
from collections.abc import Iterable
from typing import NamedTuple

from gateway.call import Usage
from gateway.settings import ModelSettings, Price, PricingSettings

MICROS = 1_000_000
HOUR_S = 3600.0
LEARNING_RATE = 0.1


class _Terms(NamedTuple):
    price: Price | None
    micros_a_second: float


class Pricing:
    """Prices of all models."""

    def __init__(self, models: Iterable[ModelSettings], settings: PricingSettings) -> None:
        self._terms = {
            model.name: _Terms(model.price, model.accelerators * settings.accelerator_hour * MICROS / HOUR_S)
            for model in models
        }
        self._micros_a_token: dict[str, float] = {}
        # What is less than a millionth goes to the next call: many short calls cost what they cost together.
        self._rest_micros: dict[str, float] = {}

    def expected(self, model: str, prompt_tokens: int, completion_tokens: int) -> int:
        """What a call of so many tokens will cost as far as is known before it."""
        price = self._terms[model].price
        if price is not None:
            return _priced(price, Usage(prompt_tokens, completion_tokens))
        return round(self._micros_a_token.get(model, 0.0) * (prompt_tokens + completion_tokens))

    def affordable(self, model: str, prompt_tokens: int, micros: int) -> float:
        """How many completion tokens so much pays for, after the prompt; infinite where they cost nothing so far."""
        price = self._terms[model].price
        if price is not None:
            left, each = micros - prompt_tokens * price.prompt, price.completion
        else:
            each = self._micros_a_token.get(model, 0.0)
            left = micros - prompt_tokens * each
        return left / each if each else math.inf

    def charged(self, model: str, usage: Usage, replica_s: float) -> int:
        """What a call has cost that took these tokens and this share of a replica's time."""
        terms = self._terms[model]
        if terms.price is not None:
            return _priced(terms.price, usage)
        micros = terms.micros_a_second * replica_s
        if usage.total_tokens:
            seen = micros / usage.total_tokens
            known = self._micros_a_token.get(model, seen)
            self._micros_a_token[model] = known + LEARNING_RATE * (seen - known)
        rest, whole = math.modf(micros + self._rest_micros.get(model, 0.0))
        self._rest_micros[model] = rest
        return int(whole)


def _priced(price: Price, usage: Usage) -> int:
    """A price for a million tokens is millionths of a unit for one."""
    cached = min(usage.cached_tokens, usage.prompt_tokens)
    cached_price = price.prompt if price.cached is None else price.cached
    fresh = usage.prompt_tokens - cached
    return round(fresh * price.prompt + cached * cached_price + usage.completion_tokens * price.completion)
