"""What a token's claims mean under an issuer's settings: whether it holds now and here, and for whom it speaks.

Pure decisions on claims whose signature somebody else has checked; `now` is wall time in seconds. Whether the tenant
that comes out exists is left to who asked.
"""

from typing import Any, NamedTuple

from gateway.identity.jws import Fault, Rejected
from gateway.settings import IssuerSettings, Role

# The end of the year 9999: later moments are mistakes, or an attempt at arithmetic.
LATEST_S = 253_402_300_799
LONGEST_SUBJECT = 256
LONGEST_NAME = 128
MOST_PATTERNS = 100
RANKS = (Role.VIEWER, Role.OPERATOR, Role.ADMIN)


class Verified(NamedTuple):
    """For whom a token speaks. `issuer` is its name in the settings; `expires_at` is in seconds of wall time."""

    issuer: str
    subject: str
    tenant: str
    models: tuple[str, ...]
    role: Role | None
    expires_at: float


def check(claims: dict[str, Any], issuer: IssuerSettings, now: float) -> None:
    """Whether a token is of this issuer, for us, and holds now. Raises Rejected."""
    if claims.get("iss") != issuer.issuer:
        raise Rejected(Fault.ISSUER)
    _check_times(claims, issuer, now)
    audience = claims.get("aud")
    named = audience if isinstance(audience, list) else [audience]
    if not all(type(one) is str for one in named) or not any(one in issuer.audiences for one in named):
        raise Rejected(Fault.AUDIENCE)
    if issuer.authorized_parties and claims.get("azp") not in issuer.authorized_parties:
        raise Rejected(Fault.PARTY)


def _check_times(claims: dict[str, Any], issuer: IssuerSettings, now: float) -> None:
    expires, issued, begins = (_moment(claims, name) for name in ("exp", "iat", "nbf"))
    if expires is None:
        raise Rejected(Fault.TIMES)
    if expires <= now - issuer.leeway_s:
        raise Rejected(Fault.EXPIRED)
    if any(moment is not None and moment > now + issuer.leeway_s for moment in (issued, begins)):
        raise Rejected(Fault.NOT_YET)
    # Without `iat` it counts from now on, as if the token were new.
    begun = now + issuer.leeway_s if issued is None else issued
    if expires - begun > issuer.max_lifetime_s:
        raise Rejected(Fault.LIFETIME)


def _moment(claims: dict[str, Any], name: str) -> float | None:
    if name not in claims:
        return None
    value = claims[name]
    if type(value) not in (int, float) or not 0 <= value <= LATEST_S:
        raise Rejected(Fault.TIMES)
    return float(value)


def meaning(claims: dict[str, Any], issuer: IssuerSettings) -> Verified:
    """For whom a token speaks that was checked. Raises Rejected where a claim says nothing that can be used."""
    return Verified(
        issuer.name,
        _subject(look_up(claims, issuer.claims.subject)),
        _tenant(_configured(claims, issuer.claims.tenant), issuer),
        _models(_configured(claims, issuer.claims.models), issuer),
        _role(_configured(claims, issuer.claims.role), issuer),
        float(claims["exp"]),
    )


def look_up(claims: dict[str, Any], path: str) -> object:
    """The claim of that very name, else the one that a path of names with dots between leads to; None for none.

    Names may have dots themselves (`https://example.com/tenant`), so the longest name that leads on counts.
    """
    if path in claims:
        return claims[path]
    dot = len(path)
    while (dot := path.rfind(".", 0, dot)) > 0:
        inner = claims.get(path[:dot])
        if isinstance(inner, dict):
            return look_up(inner, path[dot + 1 :])
    return None


def _configured(claims: dict[str, Any], path: str | None) -> object:
    return None if path is None else look_up(claims, path)


def _subject(value: object) -> str:
    if type(value) is not str or not _is_line(value, LONGEST_SUBJECT):
        raise Rejected(Fault.SUBJECT)
    return value


def _tenant(value: object, issuer: IssuerSettings) -> str:
    """Of several values, say a user's groups, those count that the settings give a tenant; they must agree."""
    if value is None and issuer.default_tenant is not None:
        return issuer.default_tenant
    values = value if isinstance(value, list) else [value]
    names = [one for one in values if isinstance(one, str)]
    if len(names) != len(values):
        raise Rejected(Fault.TENANT)
    if len(names) > 1:
        names = [one for one in names if one in issuer.tenants]
    tenants = {issuer.tenants.get(one, one) for one in names}
    if len(tenants) != 1 or not _is_line(tenant := tenants.pop(), LONGEST_NAME):
        raise Rejected(Fault.TENANT)
    return tenant


def _models(value: object, issuer: IssuerSettings) -> tuple[str, ...]:
    """An empty list is an answer, too: none."""
    if value is None:
        return issuer.default_models
    patterns = _words(value, Fault.MODELS)
    if len(patterns) > MOST_PATTERNS or not all(_is_line(one, LONGEST_NAME) and " " not in one for one in patterns):
        raise Rejected(Fault.MODELS)
    return tuple(patterns)


def _role(value: object, issuer: IssuerSettings) -> Role | None:
    """The highest of the roles that the values stand for; values that stand for none are other systems' business."""
    if value is None:
        return None
    roles = [issuer.roles[word] for word in _words(value, Fault.ROLE) if word in issuer.roles]
    return max(roles, key=RANKS.index, default=None)


def _words(value: object, fault: Fault) -> list[str]:
    """The texts in a list, or the words in one text, as OAuth writes scopes."""
    words = value.split(" ") if type(value) is str else value
    if not isinstance(words, list) or not all(type(word) is str for word in words):
        raise Rejected(fault)
    return [word for word in words if word]


def _is_line(text: str, longest: int) -> bool:
    """Whether a text may stand in a log, a header and a key of Redis: no controls, no invisible letters."""
    return 0 < len(text) <= longest and text.isprintable()
