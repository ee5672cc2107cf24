"""gateway/identity/claims.py: when a token holds, whom it is for, and for whom it speaks under which settings."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.identity.claims import (
    LATEST_S,
    LONGEST_NAME,
    LONGEST_SUBJECT,
    MOST_PATTERNS,
    Verified,
    check,
    look_up,
    meaning,
)
from gateway.identity.jws import Fault, Rejected
from gateway.settings import IssuerSettings, Role
from tests.identity_provider import NOW_S, claims
from tests.unit.splitting import thorough

ISSUER = "https://id.example"
DAY_S = 86_400
MISSING: Any = object()


def settings(**changes: Any) -> IssuerSettings:
    told = {"name": "corp", "issuer": ISSUER, "audiences": ["pagegate", "second"], "default_tenant": "default"}
    return IssuerSettings.model_validate(told | changes)


def fault_of(claimed: dict[str, Any], issuer: IssuerSettings, now: float = NOW_S) -> Fault | None:
    """What is wrong with claims; None for nothing."""
    try:
        check(claimed, issuer, now)
        meaning(claimed, issuer)
    except Rejected as rejected:
        return rejected.fault
    return None


# Times. `now` is NOW_S, the leeway 30 s, a lifetime a day at most.

TIMES: dict[str, tuple[dict[str, Any], Fault | None]] = {
    "an hour": ({}, None),
    "no exp": ({"exp": None}, Fault.TIMES),
    "exp a text": ({"exp": str(NOW_S + 60)}, Fault.TIMES),
    "exp true": ({"exp": True}, Fault.TIMES),
    "exp a list": ({"exp": [NOW_S + 60]}, Fault.TIMES),
    "exp an object": ({"exp": {}}, Fault.TIMES),
    "exp zero": ({"exp": 0}, Fault.EXPIRED),
    "exp negative": ({"exp": -1}, Fault.TIMES),
    "exp a float": ({"exp": NOW_S + 0.5}, None),
    "exp 1e20": ({"exp": 1e20}, Fault.TIMES),
    "exp in milliseconds": ({"exp": int(NOW_S + 60) * 1000}, Fault.TIMES),
    "exp beyond the calendar": ({"exp": LATEST_S + 1}, Fault.TIMES),
    "exp at the calendar's end": ({"exp": LATEST_S}, Fault.LIFETIME),
    "exp infinite": ({"exp": float("inf")}, Fault.TIMES),
    "exp no number": ({"exp": float("nan")}, Fault.TIMES),
    "exp just within the leeway": ({"exp": NOW_S - 29.9}, None),
    "exp at the leeway": ({"exp": NOW_S - 30}, Fault.EXPIRED),
    "exp now": ({"exp": NOW_S}, None),
    "exp before iat": ({"exp": NOW_S - 10, "iat": NOW_S + 10}, None),
    "iat a text": ({"iat": "1"}, Fault.TIMES),
    "iat false": ({"iat": False}, Fault.TIMES),
    "iat negative": ({"iat": -1}, Fault.TIMES),
    "iat within the leeway": ({"iat": NOW_S + 30}, None),
    "iat beyond it": ({"iat": NOW_S + 30.1}, Fault.NOT_YET),
    "iat 1e20": ({"iat": 1e20}, Fault.TIMES),
    "nbf a text": ({"nbf": ""}, Fault.TIMES),
    "nbf in the past": ({"nbf": NOW_S - 1e6}, None),
    "nbf within the leeway": ({"nbf": NOW_S + 30}, None),
    "nbf beyond it": ({"nbf": NOW_S + 31}, Fault.NOT_YET),
    "a day": ({"iat": NOW_S, "exp": NOW_S + DAY_S}, None),
    "a day and a second": ({"iat": NOW_S, "exp": NOW_S + DAY_S + 1}, Fault.LIFETIME),
    "a year that is nearly over": ({"iat": NOW_S - 365 * DAY_S, "exp": NOW_S + 60}, Fault.LIFETIME),
    "a day from now, without iat": ({"iat": None, "exp": NOW_S + DAY_S}, None),
    "a day and more from now, without iat": ({"iat": None, "exp": NOW_S + DAY_S + 31}, Fault.LIFETIME),
}


@pytest.mark.parametrize(("changes", "fault"), TIMES.values(), ids=TIMES)
def test_when_a_token_holds(changes: dict[str, Any], fault: Fault | None) -> None:
    """`exp` is required; clocks may differ by the leeway, to either side; nobody is trusted for longer than agreed."""
    assert fault_of(claims(ISSUER, **changes), settings()) is fault


@pytest.mark.parametrize("name", ["exp", "iat", "nbf"])
def test_a_time_that_is_null_is_no_time(name: str) -> None:
    """What is there must be good, also where it could be missing."""
    assert fault_of(claims(ISSUER) | {name: None}, settings()) is Fault.TIMES


def test_without_leeway_a_second_is_a_second() -> None:
    """`leeway_s: 0` allows no difference."""
    exact = settings(leeway_s=0)
    assert fault_of(claims(ISSUER, iat=NOW_S, exp=NOW_S + 0.1), exact) is None
    assert fault_of(claims(ISSUER, iat=NOW_S - 60, exp=NOW_S), exact) is Fault.EXPIRED
    assert fault_of(claims(ISSUER, iat=NOW_S + 1), exact) is Fault.NOT_YET


@thorough
@given(st.floats(-1e6, 1e6), st.floats(0, 60), st.floats(-1e5, 1e5), st.floats(-1e5, 1e5))
def test_no_token_holds_outside_its_own_times(passed_s: float, leeway_s: float, iat: float, exp: float) -> None:
    """Whatever the numbers are: never after `exp`, never before `iat`, never for longer than a day, but for leeway."""
    now = NOW_S + passed_s
    if fault_of(claims(ISSUER, iat=NOW_S + iat, exp=NOW_S + exp), settings(leeway_s=leeway_s), now) is None:
        assert NOW_S + iat - leeway_s <= now < NOW_S + exp + leeway_s
        assert exp - iat <= DAY_S + 1


# For whom: `iss`, `aud`, `azp`.


@pytest.mark.parametrize(
    ("audience", "fault"),
    [
        pytest.param("pagegate", None, id="one"),
        pytest.param("second", None, id="the other"),
        pytest.param(["pagegate"], None, id="a list"),
        pytest.param(["elsewhere", "second"], None, id="a list with others"),
        pytest.param("elsewhere", Fault.AUDIENCE, id="another gateway"),
        pytest.param(["elsewhere", "nowhere"], Fault.AUDIENCE, id="other gateways"),
        pytest.param(None, Fault.AUDIENCE, id="missing"),
        pytest.param([], Fault.AUDIENCE, id="an empty list"),
        pytest.param("", Fault.AUDIENCE, id="empty"),
        pytest.param("*", Fault.AUDIENCE, id="a pattern"),
        pytest.param("PageGate", Fault.AUDIENCE, id="in capitals"),
        pytest.param("pagegate second", Fault.AUDIENCE, id="words"),
        pytest.param("pagegate/", Fault.AUDIENCE, id="with a slash"),
        pytest.param(["pagegate", 1], Fault.AUDIENCE, id="a list with a number"),
        pytest.param([["pagegate"]], Fault.AUDIENCE, id="a list in a list"),
        pytest.param({"pagegate": True}, Fault.AUDIENCE, id="an object"),
        pytest.param(True, Fault.AUDIENCE, id="true"),
        pytest.param(0, Fault.AUDIENCE, id="a number"),
    ],
)
def test_a_token_is_for_us_or_for_nobody(audience: object, fault: Fault | None) -> None:
    """One of our audiences must be named, to the letter."""
    assert fault_of(claims(ISSUER, aud=audience), settings()) is fault


@pytest.mark.parametrize("issuer", [None, "", ISSUER + "/", ISSUER.upper(), [ISSUER], 1, {}])
def test_an_issuer_is_known_to_the_letter(issuer: object) -> None:
    """Also where the keys would fit."""
    assert fault_of(claims(ISSUER, iss=issuer), settings()) is Fault.ISSUER


@pytest.mark.parametrize(
    ("party", "allowed", "fault"),
    [
        ("app", ["app", "cli"], None),
        ("cli", ["app", "cli"], None),
        ("other", ["app"], Fault.PARTY),
        (None, ["app"], Fault.PARTY),
        ("", ["app"], Fault.PARTY),
        (["app"], ["app"], Fault.PARTY),
        ({}, ["app"], Fault.PARTY),
        ("other", [], None),
        (None, [], None),
        (17, [], None),
    ],
)
def test_who_a_token_was_made_for_counts_where_the_settings_say_so(
    party: object, allowed: list[str], fault: Fault | None
) -> None:
    """`azp` is looked at where `authorized_parties` names some, and then it is required."""
    assert fault_of(claims(ISSUER, azp=party), settings(authorized_parties=allowed)) is fault


# What claims mean.


def test_a_token_speaks_for_its_subject() -> None:
    """All of it at once."""
    issuer = settings(
        claims={"subject": "email", "tenant": "org.unit", "models": "models", "role": "realm_access.roles"},
        tenants={"u1": "research"},
        roles={"gateway-ops": "operator"},
    )
    claimed = claims(
        ISSUER,
        email="alice@example.com",
        org={"unit": "u1"},
        models=["tiny", "big-*"],
        realm_access={"roles": ["user", "gateway-ops"]},
    )
    assert meaning(claimed, issuer) == Verified(
        "corp", "alice@example.com", "research", ("tiny", "big-*"), Role.OPERATOR, NOW_S + 3600
    )


@pytest.mark.parametrize(
    ("claimed", "path", "found"),
    [
        ({"a": 1}, "a", 1),
        ({"a": 1}, "b", None),
        ({}, "a.b", None),
        ({"a": {"b": {"c": 1}}}, "a.b.c", 1),
        ({"a": {"b": 1}}, "a.b.c", None),
        ({"a": {"b": 1}}, "a", {"b": 1}),
        ({"a": [{"b": 1}]}, "a.b", None),
        ({"a": [{"b": 1}]}, "a.0.b", None),
        ({"a.b": 1, "a": {"b": 2}}, "a.b", 1),
        ({"https://example.com/tenant": 1}, "https://example.com/tenant", 1),
        ({"https://example.com/app": {"tenant": 1}}, "https://example.com/app.tenant", 1),
        ({"a.b": {"c": 1}, "a": {"b": {"c": 2}}}, "a.b.c", 1),
        ({"a.b": 3, "a": {"b": {"c": 2}}}, "a.b.c", 2),
        ({"resource": {"my.client": {"roles": 1}}}, "resource.my.client.roles", 1),
        ({"": {"a": 1}}, ".a", None),
        ({"a": {"": 1}}, "a.", 1),
        ({"a": None}, "a", None),
        ({"a": False}, "a", False),
        ({"a": {}}, "a..b", None),
        ({"__class__": 1}, "__class__", 1),
        ({}, "__class__", None),
    ],
)
def test_where_a_claim_is_found(claimed: dict[str, Any], path: str, found: object) -> None:
    """A claim of that very name first, for names have dots; else a way through objects, and through nothing else."""
    assert look_up(claimed, path) == found


@pytest.mark.parametrize(
    ("subject", "fault"),
    [
        ("alice", None),
        ("alice@example.com", None),
        ("auth0|5f7c8ec7c33c6c004bbafe82", None),
        ("Ålice Ünïcode 山田", None),
        ("s" * LONGEST_SUBJECT, None),
        ("s" * (LONGEST_SUBJECT + 1), Fault.SUBJECT),
        (None, Fault.SUBJECT),
        ("", Fault.SUBJECT),
        (17, Fault.SUBJECT),
        (True, Fault.SUBJECT),
        (["alice"], Fault.SUBJECT),
        ({"alice": 1}, Fault.SUBJECT),
        ("alice\n", Fault.SUBJECT),
        ("alice\r\nSET x", Fault.SUBJECT),
        ("alice\troot", Fault.SUBJECT),
        ("alice\x1b[2J", Fault.SUBJECT),
        ("alice\x7f", Fault.SUBJECT),
        ("alice\u202eroot", Fault.SUBJECT),
        ("alice\u200b", Fault.SUBJECT),
        ("alice\u2028root", Fault.SUBJECT),
        ("alice\ufeff", Fault.SUBJECT),
        ("alice\xa0", Fault.SUBJECT),
    ],
)
def test_who_a_subject_may_be(subject: object, fault: Fault | None) -> None:
    """A line of letters that can be seen: it stands in logs, limits and keys of Redis."""
    assert fault_of(claims(ISSUER, sub=subject), settings()) is fault


TENANTS: dict[str, tuple[object, dict[str, str], str | None, str | None]] = {
    # The claim, what values stand for, the default, and the tenant that comes out; None for refused.
    "a name": ("research", {}, None, "research"),
    "a value": ("u1", {"u1": "research"}, None, "research"),
    "a value that is a name, too": ("research", {"research": "other"}, None, "other"),
    "a name beside values": ("research", {"u1": "other"}, None, "research"),
    "missing": (MISSING, {}, "default", "default"),
    "missing without default": (MISSING, {}, None, None),
    "null": (None, {}, "default", "default"),
    "empty": ("", {}, "default", None),
    "an empty list": ([], {}, "default", None),
    "a list of one": (["research"], {}, "default", "research"),
    "groups of which one counts": (["staff", "u1", "vpn"], {"u1": "research"}, None, "research"),
    "groups that agree": (["u1", "u2"], {"u1": "research", "u2": "research"}, None, "research"),
    "groups that do not agree": (["u1", "u2"], {"u1": "research", "u2": "other"}, "default", None),
    "groups of which none counts": (["staff", "vpn"], {"u1": "research"}, "default", None),
    "groups without values": (["staff", "vpn"], {}, "default", None),
    "a number": (1, {"1": "research"}, "default", None),
    "false": (False, {}, "default", None),
    "an object": ({"name": "research"}, {}, "default", None),
    "a list with a number": (["u1", 1], {"u1": "research"}, "default", None),
    "a list in a list": ([["u1"]], {"u1": "research"}, "default", None),
    "with a line": ("research\nroot", {}, "default", None),
    "too long": ("t" * (LONGEST_NAME + 1), {}, "default", None),
    "long": ("t" * LONGEST_NAME, {}, "default", "t" * LONGEST_NAME),
}


@pytest.mark.parametrize(("value", "tenants", "default", "tenant"), TENANTS.values(), ids=TENANTS)
def test_whom_a_token_acts_for(value: object, tenants: dict[str, str], default: str | None, tenant: str | None) -> None:
    """The default is for tokens that say nothing; one that says something which cannot be used is refused."""
    issuer = settings(claims={"tenant": "org"}, tenants=tenants, default_tenant=default)
    claimed = claims(ISSUER) | ({} if value is MISSING else {"org": value})
    if tenant is None:
        assert fault_of(claimed, issuer) is Fault.TENANT
    else:
        assert meaning(claimed, issuer).tenant == tenant


def test_a_tenant_claim_that_nobody_configured_is_not_looked_at() -> None:
    """And without a default tenant nobody gets in."""
    claimed = claims(ISSUER, tenant="root", org="root")
    assert meaning(claimed, settings()).tenant == "default"
    assert fault_of(claimed, settings(default_tenant=None)) is Fault.TENANT


MODELS: dict[str, tuple[object, tuple[str, ...] | None]] = {
    # The claim, and the patterns that come out; None for refused.
    "a list": (["tiny", "big-*"], ("tiny", "big-*")),
    "words": ("tiny big-*", ("tiny", "big-*")),
    "a word": ("tiny", ("tiny",)),
    "words far apart": ("  tiny   big-* ", ("tiny", "big-*")),
    "all": ("*", ("*",)),
    "missing": (MISSING, ("usual",)),
    "null": (None, ("usual",)),
    "none": ([], ()),
    "an empty text": ("", ()),
    "a list of nothing": ([""], ()),
    "a number": (1, None),
    "true": (True, None),
    "an object": ({"tiny": True}, None),
    "a list with a number": (["tiny", 1], None),
    "a list with null": (["tiny", None], None),
    "a pattern of two words": (["tiny big"], None),
    "a pattern with a line": (["tiny\n"], None),
    "a pattern with a tab": ("tiny\tbig", None),
    "a pattern too long": (["t" * (LONGEST_NAME + 1)], None),
    "many": (["t"] * MOST_PATTERNS, ("t",) * MOST_PATTERNS),
    "too many": (["t"] * (MOST_PATTERNS + 1), None),
}


@pytest.mark.parametrize(("value", "patterns"), MODELS.values(), ids=MODELS)
def test_which_models_a_token_permits(value: object, patterns: tuple[str, ...] | None) -> None:
    """The default is for tokens that say nothing; an empty list says that there are none."""
    issuer = settings(claims={"models": "models"}, default_models=["usual"])
    claimed = claims(ISSUER) | ({} if value is MISSING else {"models": value})
    if patterns is None:
        assert fault_of(claimed, issuer) is Fault.MODELS
    else:
        assert meaning(claimed, issuer).models == patterns


def test_without_a_word_about_models_there_are_none() -> None:
    """Neither in the settings nor in the token: default deny."""
    assert meaning(claims(ISSUER, models=["*"]), settings()).models == ()


ROLES: dict[str, tuple[object, Role | None, Fault | None]] = {
    "one": (["ops"], Role.OPERATOR, None),
    "words": ("read ops", Role.OPERATOR, None),
    "the highest": (["read", "root", "ops"], Role.ADMIN, None),
    "the highest, in any order": ("root read", Role.ADMIN, None),
    "one among others": (["mail", "read"], Role.VIEWER, None),
    "others only": (["mail", "vpn"], None, None),
    "one of ours that nothing stands for": (["admin"], None, None),
    "in capitals": (["ROOT"], None, None),
    "missing": (MISSING, None, None),
    "null": (None, None, None),
    "none": ([], None, None),
    "a number": (1, None, Fault.ROLE),
    "true": (True, None, Fault.ROLE),
    "an object": ({"root": True}, None, Fault.ROLE),
    "a list with an object": ([{"name": "root"}], None, Fault.ROLE),
}


@pytest.mark.parametrize(("value", "role", "fault"), ROLES.values(), ids=ROLES)
def test_which_role_a_token_gives(value: object, role: Role | None, fault: Fault | None) -> None:
    """Only values that the settings give a role, and of several the highest; our own names stand for nothing."""
    issuer = settings(claims={"role": "roles"}, roles={"read": "viewer", "ops": "operator", "root": "admin"})
    claimed = claims(ISSUER) | ({} if value is MISSING else {"roles": value})
    assert fault_of(claimed, issuer) is fault
    if fault is None:
        assert meaning(claimed, issuer).role is role


def test_a_token_makes_nobody_an_administrator_by_itself() -> None:
    """Claims that look like roles are words, unless the settings say where roles are and what they stand for."""
    claimed = claims(ISSUER, role="admin", roles=["admin"], admin=True, scope="admin")
    assert meaning(claimed, settings()).role is None
    assert meaning(claimed, settings(claims={"role": "roles"})).role is None
    assert meaning(claimed, settings(roles={"admin": "admin"})).role is None


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)


@thorough
@given(st.fixed_dictionaries({}, optional=dict.fromkeys(["sub", "org", "models", "roles", "exp", "iat", "aud"], JSON)))
def test_whatever_claims_are_they_are_refused_or_well_formed(changes: dict[str, Any]) -> None:
    """No claim makes us stumble, and what comes out may stand anywhere."""
    issuer = settings(claims={"tenant": "org", "models": "models", "role": "roles"}, roles={"root": "admin"})
    claimed = claims(ISSUER) | changes
    if fault_of(claimed, issuer) is None:
        verified = meaning(claimed, issuer)
        for text in (verified.subject, verified.tenant, *verified.models):
            assert text
            assert text.isprintable()
            assert len(text) <= LONGEST_SUBJECT
