"""gateway/admission/rulebook.py: which quotas hold a call."""

from typing import Any

import pytest

from gateway.admission.quotas import Kind, Quota, Unit
from gateway.admission.rulebook import MOST_KNOWN, Rulebook
from gateway.identity.principal import Principal, Tenant
from gateway.settings import Budget, LimitRule, Limits, ModelSettings, OnLoss


def principal(name: str = "k", tenant: str = "acme", *, budget: Budget | None = None, **limits: Any) -> Principal:
    owner = Tenant(tenant, Limits(), "salt", budget=budget or Budget())
    return Principal(f"key/{name}", name, owner, ("*",), Limits(**limits))


def ids(quotas: tuple[Quota, ...]) -> list[str]:
    return [quota.id for quota in quotas]


def test_a_call_is_held_to_its_keys_its_tenants_and_its_models_limits() -> None:
    """Each under a name of its own, which is the same in every gateway."""
    model = ModelSettings(name="tiny", limits=Limits(concurrent_calls=4))
    tenant = Tenant("acme", Limits(tokens_per_minute=9, tokens_per_day=99), "salt")
    caller = Principal("key/k", "k", tenant, ("*",), Limits(requests_per_minute=5))
    assert Rulebook([model], []).quotas(caller, "tiny") == (
        Quota("key/k/requests_per_minute", "key k", "requests_per_minute", Kind.RATE, Unit.REQUESTS, 5, 60.0),
        Quota("tenant/acme/tokens_per_minute", "tenant acme", "tokens_per_minute", Kind.RATE, Unit.TOKENS, 9, 60.0),
        Quota("tenant/acme/tokens_per_day", "tenant acme", "tokens_per_day", Kind.RATE, Unit.TOKENS, 99, 86_400.0),
        Quota("model/tiny/concurrent_calls", "model tiny", "concurrent_calls", Kind.SLOTS, Unit.CALLS, 4, shared=True),
    )


def test_a_caller_without_limits_is_held_to_none() -> None:
    assert Rulebook([ModelSettings(name="tiny")], []).quotas(principal(), "tiny") == ()


@pytest.mark.parametrize(
    ("per", "expected", "owner"),
    [
        ((), "rule/r/requests_per_minute", "rule r"),
        (("key",), "rule/r/key%2Fk/requests_per_minute", "rule r, key k"),
        (("tenant",), "rule/r/acme/requests_per_minute", "rule r, tenant acme"),
        (("model",), "rule/r/tiny/requests_per_minute", "rule r, model tiny"),
        (("model", "tenant"), "rule/r/acme/tiny/requests_per_minute", "rule r, tenant acme, model tiny"),
        (("tenant", "key", "model"), "rule/r/key%2Fk/acme/tiny/requests_per_minute", None),
    ],
)
def test_a_rule_counts_for_each_combination(per: tuple[str, ...], expected: str, owner: str | None) -> None:
    """In whatever order it names them."""
    rule = LimitRule.model_validate({"name": "r", "per": per, "requests_per_minute": 1})
    (quota,) = Rulebook([], [rule]).quotas(principal(), "tiny")
    assert quota.id == expected
    assert owner is None or quota.owner == owner


@pytest.mark.parametrize(
    ("patterns", "taken_in"),
    [
        ({}, True),
        ({"models": ["ti*"]}, True),
        ({"models": ["big"]}, False),
        ({"tenants": ["acme", "b"], "keys": ["k"]}, True),
        ({"tenants": ["acme"], "keys": ["other"]}, False),
        ({"tenants": ["ACME"]}, False),
    ],
)
def test_a_rule_holds_what_its_patterns_take_in(patterns: dict[str, Any], taken_in: bool) -> None:
    rule = LimitRule.model_validate({"name": "r", "concurrent_calls": 1, **patterns})
    assert bool(Rulebook([], [rule]).quotas(principal(), "tiny")) is taken_in


def test_a_rule_says_what_holds_while_redis_is_away() -> None:
    rule = LimitRule.model_validate({"name": "r", "concurrent_calls": 1, "on_loss": "refuse"})
    (quota,) = Rulebook([], [rule]).quotas(principal(), "tiny")
    assert quota.on_loss is OnLoss.REFUSE
    (own,) = Rulebook([], []).quotas(principal(concurrent_calls=1, on_loss="refuse"), "tiny")
    assert own.on_loss is OnLoss.REFUSE


def test_a_budget_counts_tokens_and_cost_by_day_and_month() -> None:
    """Cost in millionths of the unit, and never nothing."""
    budget = Budget(tokens_per_day=10, tokens_per_month=100, cost_per_day=0.5, cost_per_month=1e-9)
    found = Rulebook([], []).quotas(principal(budget=budget), "tiny")
    assert [(quota.id, quota.kind, quota.unit, quota.size) for quota in found] == [
        ("tenant/acme/budget/tokens/day", Kind.DAY, Unit.TOKENS, 10),
        ("tenant/acme/budget/cost/day", Kind.DAY, Unit.COST, 500_000),
        ("tenant/acme/budget/tokens/month", Kind.MONTH, Unit.TOKENS, 100),
        ("tenant/acme/budget/cost/month", Kind.MONTH, Unit.COST, 1),
    ]


def test_what_was_worked_out_is_kept_and_bounded() -> None:
    """The same value for the same caller, and no more callers than can be remembered."""
    book, caller = Rulebook([], []), principal(requests_per_minute=1)
    assert book.quotas(caller, "tiny") is book.quotas(caller, "tiny")
    for number in range(MOST_KNOWN + 10):
        book.quotas(principal(str(number)), "tiny")
    assert repr(book) == "<Rulebook 0 rules, 11 known>"


def test_a_token_and_a_key_of_the_same_name_are_two() -> None:
    """Whoever signs tokens cannot use up another's limits by choosing a name."""
    rule = LimitRule(name="r", per=("key",), requests_per_minute=1)
    book, tenant = Rulebook([], [rule]), Tenant("acme", Limits(), "salt")
    key, token = (Principal(f"{kind}/x", "x", tenant, ("*",)) for kind in ("key", "token"))
    assert ids(book.quotas(key, "m")) != ids(book.quotas(token, "m"))


def test_no_two_owners_are_one_because_of_how_they_are_called() -> None:
    """Names may hold what stands between them."""
    models = [ModelSettings(name=name) for name in ("Qwen/m", "m")]
    rule = LimitRule(name="r", per=("tenant", "model"), requests_per_minute=1)
    of_key, of_all = (
        LimitRule(name="r", per=("key",), requests_per_minute=1),
        LimitRule(name="r/key/k", requests_per_minute=1),
    )
    book = Rulebook(models, [rule])
    assert ids(book.quotas(principal(tenant="acme"), "Qwen/m")) != ids(book.quotas(principal(tenant="acme/Qwen"), "m"))
    found = [ids(Rulebook(models, [each]).quotas(principal(), "m")) for each in (of_key, of_all)]
    assert found[0] != found[1]


@pytest.mark.parametrize(
    ("per", "shared"), [((), True), (("model",), True), (("tenant",), False), (("key", "model"), False)]
)
def test_a_rule_is_shared_unless_it_counts_for_each_tenant_or_key(per: tuple[str, ...], shared: bool) -> None:
    rule = LimitRule.model_validate({"name": "r", "per": per, "requests_per_minute": 1})
    (quota,) = Rulebook([], [rule]).quotas(principal(), "tiny")
    assert quota.shared is shared


def test_while_the_model_is_unknown_no_rule_for_each_model_counts() -> None:
    """A call that was refused before it named one is told of the limits that hold whatever it names."""
    rules = [
        LimitRule(name="each", per=("tenant", "model"), requests_per_minute=1),
        LimitRule(name="all", per=("tenant",), requests_per_minute=2),
    ]
    assert ids(Rulebook([], rules).quotas(principal(), "")) == ["rule/all/acme/requests_per_minute"]
