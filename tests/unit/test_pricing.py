"""gateway/admission/pricing.py and gateway/fleet/sharing.py: what a call costs."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.admission.pricing import Pricing
from gateway.call import Usage
from gateway.fleet.sharing import Sharing
from gateway.settings import ModelSettings, PricingSettings
from tests.unit.splitting import thorough


def pricing(price: dict[str, Any] | None = None, **model: Any) -> Pricing:
    described = {"name": "m", "price": price, **model}
    return Pricing([ModelSettings.model_validate(described)], PricingSettings(accelerator_hour=3.6))


@pytest.mark.parametrize(
    ("price", "usage", "micros"),
    [
        pytest.param({"prompt": 1, "completion": 2}, Usage(10, 5), 20, id="both"),
        pytest.param({"prompt": 1, "cached": 0.1}, Usage(100, 5, 50), 55, id="cached for less"),
        pytest.param({"prompt": 1}, Usage(100, 5, 50), 100, id="cached like all"),
        pytest.param({"prompt": 1, "cached": 0}, Usage(10, 0, 99), 0, id="never more cached than there was"),
        pytest.param({}, Usage(10, 10), 0, id="free"),
    ],
)
def test_a_price_is_for_a_million_tokens(price: dict[str, Any], usage: Usage, micros: int) -> None:
    """So what one token costs is in millionths."""
    assert pricing(price).charged("m", usage, 1e9) == micros


def test_what_is_expected_of_a_price_is_what_it_says() -> None:
    assert pricing({"prompt": 1, "completion": 2}).expected("m", 10, 5) == 20


def test_without_a_price_a_call_costs_its_share_of_the_accelerators() -> None:
    """3.6 units an hour are 1000 millionths a second, for each accelerator."""
    assert pricing().charged("m", Usage(1, 1), 2.0) == 2000
    assert pricing(accelerators=4).charged("m", Usage(1, 1), 2.0) == 8000
    assert pricing().charged("m", Usage(0, 0), 0.0) == 0


def test_what_time_costs_by_token_is_learnt() -> None:
    """Nothing is expected before, and no single call changes much after."""
    subject = pricing()
    assert subject.expected("m", 50, 50) == 0
    subject.charged("m", Usage(50, 50), 0.1)
    assert subject.expected("m", 50, 50) == 100
    subject.charged("m", Usage(50, 50), 1.1)
    assert subject.expected("m", 50, 50) == 200


def test_many_short_calls_cost_what_they_cost_together() -> None:
    """Though each alone would round to nothing."""
    subject = pricing()
    assert sum(subject.charged("m", Usage(1, 1), 0.0003) for _ in range(1000)) in (299, 300)


def test_calls_on_one_replica_share_its_time() -> None:
    """One alone has all of it, of two each has half."""
    sharing = Sharing()
    first = sharing.enter(10.0)
    second = sharing.enter(14.0)
    assert sharing.leave(second, 16.0) == pytest.approx(1.0)
    assert sharing.leave(first, 17.0) == pytest.approx(4.0 + 1.0 + 1.0)
    late = sharing.enter(100.0)
    assert sharing.leave(late, 101.0) == pytest.approx(1.0)
    assert sharing.calls == 0


@thorough
@given(st.lists(st.tuples(st.floats(0, 100), st.floats(0, 100)), min_size=1, max_size=20))
def test_shares_add_up_to_the_time_that_the_replica_worked(spans: list[tuple[float, float]]) -> None:
    """Nothing is charged twice, and nothing not at all."""
    events = sorted((moment, number, at) for number, span in enumerate(spans) for at, moment in enumerate(sorted(span)))
    events.sort(key=lambda event: (event[0], event[2]))
    sharing, entered, total, busy_s, last_s = Sharing(), dict[int, float](), 0.0, 0.0, 0.0
    for moment, number, ends in events:
        busy_s += moment - last_s if sharing.calls else 0.0
        last_s = moment
        if ends:
            total += sharing.leave(entered[number], moment)
        else:
            entered[number] = sharing.enter(moment)
    assert total == pytest.approx(busy_s, abs=1e-6)
