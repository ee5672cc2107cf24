"""What a call is thought to cost before it runs, and what it is charged once it ended.

Prompt tokens are estimated from the prompt's bytes by a ratio that is learnt for each model from the engine's own
counts; the estimate only decides admission, the charge is what the engine measured wherever it said so.
"""

from typing import NamedTuple

from gateway.call import Call, Delivery, Usage
from gateway.errors import BadCall, GatewayError, Refused, Unserved

FIRST_GUESS_TOKENS_PER_BYTE = 0.3
LEARNING_RATE = 0.1


# A token stands for a byte of the prompt at least, but for those that a chat template adds.
TEMPLATE_TOKENS = 4096
MOST_TOKENS_PER_BYTE = 1.0
LONGEST_COMPLETION_TOKENS = 2**20


class Cost(NamedTuple):
    """Tokens that a call may take. `open_ended` when the caller did not say how long the completion may be."""

    prompt_tokens: int
    completion_tokens: int
    open_ended: bool

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens


class Estimator:
    """Tokens for each byte of a prompt, by model: an exponential moving average of what engines measured."""

    def __init__(self, completion_tokens: int) -> None:
        self._completion_tokens = completion_tokens
        self._tokens_per_byte: dict[str, float] = {}

    def estimate(self, call: Call) -> Cost:
        ratio = self._tokens_per_byte.get(call.model, FIRST_GUESS_TOKENS_PER_BYTE)
        completion = self._completion_tokens if call.max_tokens is None else call.max_tokens
        return Cost(round(call.prompt_bytes * ratio) + 1, completion * call.choices, call.max_tokens is None)

    def learn(self, call: Call, usage: Usage) -> None:
        if usage.measured and call.prompt_bytes:
            seen = min(MOST_TOKENS_PER_BYTE, usage.prompt_tokens / call.prompt_bytes)
            known = self._tokens_per_byte.get(call.model, seen)
            self._tokens_per_byte[call.model] = known + LEARNING_RATE * (seen - known)


def charge(call: Call, cost: Cost, delivery: Delivery, error: BaseException | None) -> Usage:
    """The tokens to charge: measured where known, nothing where nothing ran, else what was seen to be delivered."""
    if delivery.usage is not None:
        return credible(call, delivery.usage)
    if not delivery.events and _nothing_ran(error):
        return Usage(0, 0)
    return Usage(cost.prompt_tokens, delivery.events, measured=False)


def credible(call: Call, usage: Usage) -> Usage:
    """What the engine says that the call took, but never more than it can have taken: a tenant pays for it."""
    most = (LONGEST_COMPLETION_TOKENS if call.max_tokens is None else call.max_tokens) * call.choices
    return usage._replace(
        prompt_tokens=min(usage.prompt_tokens, call.prompt_bytes + TEMPLATE_TOKENS),
        completion_tokens=min(usage.completion_tokens, most),
    )


def _nothing_ran(error: BaseException | None) -> bool:
    """Whether a call ended before an engine worked for it, or by a fault of ours alone."""
    ours = isinstance(error, Exception) and not isinstance(error, GatewayError)
    return ours or isinstance(error, (Unserved, BadCall, Refused))
