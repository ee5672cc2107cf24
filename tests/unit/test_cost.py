"""gateway/admission/cost.py: what a call is thought to cost, and what it is charged."""

import asyncio

import pytest

from gateway.admission.cost import FIRST_GUESS_TOKENS_PER_BYTE, TEMPLATE_TOKENS, Cost, Estimator, charge
from gateway.call import Call, Delivery, Usage
from gateway.errors import (
    BadCall,
    CallerLeft,
    CallTimedOut,
    EngineFailed,
    EngineLost,
    LimitReached,
    NoReplica,
    TimedOut,
)
from tests.unit.calls import a_call

COST = Cost(prompt_tokens=100, completion_tokens=50, open_ended=False)
NOTHING = Usage(0, 0)


def call(prompt_bytes: int = 1000, max_tokens: int | None = None, choices: int = 1, model: str = "m") -> Call:
    return a_call(model=model, choices=choices, max_tokens=max_tokens, prompt_bytes=prompt_bytes)


@pytest.mark.parametrize(
    ("asked", "cost"),
    [
        pytest.param(call(), Cost(301, 256, open_ended=True), id="the usual guess where the caller says nothing"),
        pytest.param(call(max_tokens=10), Cost(301, 10, open_ended=False), id="what he says otherwise"),
        pytest.param(call(max_tokens=10, choices=3), Cost(301, 30, open_ended=False), id="for each choice"),
        pytest.param(call(choices=3), Cost(301, 768, open_ended=True), id="the guess as well"),
        pytest.param(call(prompt_bytes=0, max_tokens=1), Cost(1, 1, open_ended=False), id="no prompt is one token"),
    ],
)
def test_what_a_call_may_take(asked: Call, cost: Cost) -> None:
    """Prompt bytes by a ratio, completion by what may come of it at most."""
    assert Estimator(256).estimate(asked) == cost
    assert cost.total_tokens == cost.prompt_tokens + cost.completion_tokens


def test_the_ratio_is_learnt_from_what_engines_measured() -> None:
    """Model by model, and only from measurements."""
    estimator = Estimator(256)
    for _ in range(100):
        estimator.learn(call(), Usage(500, 10))
        estimator.learn(call(model="other"), Usage(900, 10, measured=False))
        estimator.learn(call(prompt_bytes=0), Usage(900, 10))
    assert estimator.estimate(call()).prompt_tokens == pytest.approx(501, abs=2)
    assert estimator.estimate(call(model="other")).prompt_tokens == round(1000 * FIRST_GUESS_TOKENS_PER_BYTE) + 1


def test_one_odd_prompt_does_not_spoil_the_ratio() -> None:
    """A picture of a megabyte that counts as few tokens makes the next text no tenth cheaper than it was."""
    estimator = Estimator(256)
    for _ in range(50):
        estimator.learn(call(), Usage(300, 10))
    estimator.learn(call(prompt_bytes=1_000_000), Usage(1000, 10))
    assert estimator.estimate(call()).prompt_tokens > 265


@pytest.mark.parametrize(
    ("delivery", "error", "charged"),
    [
        pytest.param(Delivery(usage=Usage(7, 2)), None, Usage(7, 2), id="measured"),
        pytest.param(Delivery(usage=Usage(7, 2), events=99), EngineLost(), Usage(7, 2), id="measured, then lost"),
        pytest.param(Delivery(events=4), None, Usage(100, 4, measured=False), id="never measured"),
        pytest.param(Delivery(events=4), EngineLost(), Usage(100, 4, measured=False), id="lost"),
        pytest.param(Delivery(events=4), CallerLeft(), Usage(100, 4, measured=False), id="left"),
        pytest.param(Delivery(events=4), TimedOut("x", 1), Usage(100, 4, measured=False), id="what was had is paid"),
        pytest.param(Delivery(), CallerLeft(), Usage(100, 0, measured=False), id="left before the first token"),
        pytest.param(Delivery(), asyncio.CancelledError(), Usage(100, 0, measured=False), id="cancelled"),
        pytest.param(Delivery(), CallTimedOut(1), Usage(100, 0, measured=False), id="worked on for too long"),
        pytest.param(Delivery(), EngineFailed("x"), NOTHING, id="no engine answered"),
        pytest.param(Delivery(), NoReplica("m"), NOTHING, id="no engine was there"),
        pytest.param(Delivery(), BadCall("x"), NOTHING, id="an engine would not have it"),
        pytest.param(Delivery(), LimitReached("x", 1, "y", 1), NOTHING, id="refused"),
        pytest.param(Delivery(), RuntimeError("x"), NOTHING, id="a fault of ours"),
    ],
)
def test_what_a_call_is_charged(delivery: Delivery, error: BaseException | None, charged: Usage) -> None:
    """Measured where known; the prompt at least where an engine worked; nothing where none did."""
    assert charge(call(), COST, delivery, error) == charged


@pytest.mark.parametrize(
    ("told", "believed"),
    [
        pytest.param(Usage(2**40 - 1, 7), Usage(100 + TEMPLATE_TOKENS, 7), id="more tokens than bytes"),
        pytest.param(Usage(7, 2**40 - 1), Usage(7, 40), id="more than was asked for"),
        pytest.param(Usage(7, 40, 3), Usage(7, 40, 3), id="all that can be"),
    ],
)
def test_what_an_engine_says_is_believed_up_to_what_can_be(told: Usage, believed: Usage) -> None:
    """A tenant would owe for years, and what others may ask is learnt from it."""
    one = call(prompt_bytes=100, max_tokens=20, choices=2)
    assert charge(one, COST, Delivery(usage=told), None) == believed


def test_one_absurd_count_does_not_make_every_prompt_too_long() -> None:
    """What an engine said once would refuse everybody, and then nothing would be learnt again."""
    estimator = Estimator(16)
    estimator.learn(call(prompt_bytes=100), Usage(2**40 - 1, 1))
    assert estimator.estimate(call(prompt_bytes=1000)).prompt_tokens <= 1001
