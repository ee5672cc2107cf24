"""Which quotas hold a call: those of its key, its tenant and its model, of every rule that takes it in, and budgets.

Worked out once for each caller and model, and kept. How much of a quota is used is a limiter's business.
"""

from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase
from urllib.parse import quote

from gateway.admission.quotas import Kind, Quota, Unit
from gateway.identity.principal import Principal, Tenant
from gateway.settings import LimitRule, Limits, ModelSettings

MINUTE_S, DAY_S = 60.0, 86_400.0
MICROS = 1_000_000
MOST_KNOWN = 20_000


class Rulebook:
    """`<Rulebook 2 rules, 17 known>`."""

    def __init__(self, models: Iterable[ModelSettings], rules: Iterable[LimitRule]) -> None:
        self._of_model = {
            model.name: tuple(_quotas(f"model {model.name}", f"model/{model.name}", model.limits, shared=True))
            for model in models
        }
        self._rules = tuple(rules)
        self._known: dict[Principal, dict[str, tuple[Quota, ...]]] = {}

    def quotas(self, principal: Principal, model: str) -> tuple[Quota, ...]:
        """All quotas that a call of this caller for this model is held to; the same value each time.

        An empty model is one that is not known yet: rules that count for each model say nothing then.
        """
        of_principal = self._known.get(principal)
        if of_principal is None:
            # Callers that have changed or gone are dropped with all the others: what is needed is soon there again.
            if len(self._known) >= MOST_KNOWN:
                self._known.clear()
            of_principal = self._known[principal] = {}
        found = of_principal.get(model)
        if found is None:
            found = of_principal[model] = tuple(self._worked_out(principal, model))
        return found

    def _worked_out(self, principal: Principal, model: str) -> Iterator[Quota]:
        tenant = principal.tenant
        yield from _quotas(f"key {principal.name}", principal.id, principal.limits)
        yield from _quotas(f"tenant {tenant.name}", f"tenant/{tenant.name}", tenant.limits)
        yield from budget_quotas(tenant)
        yield from self._of_model.get(model, ())
        for rule in self._rules:
            if _takes_in(rule, principal, model):
                names = {"key": principal.name, "tenant": tenant.name, "model": model}
                ids = names | {"key": principal.id}
                parts = [part for part in names if part in rule.per]
                whose = "".join(f", {part} {names[part]}" for part in parts)
                # Names may hold what stands between them: quoted they cannot.
                identifier = "/".join(
                    ["rule", *(quote(each, safe="") for each in (rule.name, *(ids[part] for part in parts)))]
                )
                shared = "key" not in rule.per and "tenant" not in rule.per
                yield from _quotas(f"rule {rule.name}{whose}", identifier, rule, shared=shared)

    def __repr__(self) -> str:
        return f"<Rulebook {len(self._rules)} rules, {len(self._known)} known>"


def budget_quotas(tenant: Tenant) -> Iterator[Quota]:
    """What a tenant may use up in a calendar day and month."""
    budget, owner, identifier = tenant.budget, f"tenant {tenant.name}", f"tenant/{tenant.name}/budget"
    for kind, tokens, cost in (
        (Kind.DAY, budget.tokens_per_day, budget.cost_per_day),
        (Kind.MONTH, budget.tokens_per_month, budget.cost_per_month),
    ):
        if tokens is not None:
            yield Quota(
                f"{identifier}/tokens/{kind}",
                owner,
                f"budget_tokens_per_{kind}",
                kind,
                Unit.TOKENS,
                tokens,
                on_loss=budget.on_loss,
            )
        if cost is not None:
            size = max(1, round(cost * MICROS))
            yield Quota(
                f"{identifier}/cost/{kind}",
                owner,
                f"budget_cost_per_{kind}",
                kind,
                Unit.COST,
                size,
                on_loss=budget.on_loss,
            )


def _quotas(owner: str, identifier: str, limits: Limits, *, shared: bool = False) -> Iterator[Quota]:
    for limit, kind, unit, size, period_s in (
        ("requests_per_minute", Kind.RATE, Unit.REQUESTS, limits.requests_per_minute, MINUTE_S),
        ("tokens_per_minute", Kind.RATE, Unit.TOKENS, limits.tokens_per_minute, MINUTE_S),
        ("tokens_per_day", Kind.RATE, Unit.TOKENS, limits.tokens_per_day, DAY_S),
        ("concurrent_calls", Kind.SLOTS, Unit.CALLS, limits.concurrent_calls, 0.0),
    ):
        if size is not None:
            yield Quota(f"{identifier}/{limit}", owner, limit, kind, unit, size, period_s, limits.on_loss, shared)


def _takes_in(rule: LimitRule, principal: Principal, model: str) -> bool:
    if not model and "model" in rule.per:
        return False
    return (
        _matches(rule.keys, principal.name)
        and _matches(rule.tenants, principal.tenant.name)
        and _matches(rule.models, model)
    )


def _matches(patterns: tuple[str, ...], name: str) -> bool:
    return "*" in patterns or any(fnmatchcase(name, pattern) for pattern in patterns)
