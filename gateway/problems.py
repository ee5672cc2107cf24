"""What is wrong with a configuration, in lines that each name a dotted path: values one by one, and their agreement.

Never repeats what may be a secret. Which values a setting takes is `settings.py`'s business.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import ValidationError

LONGEST_SHOWN = 100
SECRET = re.compile(r"secret|digest|key|identity")


def problems_of(error: ValidationError) -> list[str]:
    """One line a problem: `admission.max_running: must be at least 1 (was 0)`. Secrets are not repeated."""
    return [line for item in error.errors(include_url=False) for line in _lines(item)]


def _lines(item: Mapping[str, Any]) -> Iterator[str]:
    where = ".".join(str(step) for step in item["loc"])
    context, kind, was = item.get("ctx", {}), item["type"], _shown(where, item["input"])
    match kind:
        case "extra_forbidden":
            yield f"{where}: is not a setting"
        case "missing":
            yield f"{where}: is missing"
        case "greater_than_equal":
            yield f"{where}: must be at least {_plain(context['ge'])}{was}"
        case "greater_than":
            yield f"{where}: must be more than {_plain(context['gt'])}{was}"
        case "less_than_equal":
            yield f"{where}: must be at most {_plain(context['le'])}{was}"
        case "value_error":
            # Our own validators give several problems at once, each with its path inside the section.
            inner = str(context["error"]).split("\n")
            prefix = f"{where}." if where else ""
            nested = all(re.match(r"^[a-z_.0-9]+: ", line) for line in inner)
            yield from (f"{prefix}{line}" for line in inner) if nested else (f"{where}: {inner[0]}{was}",)
        case _:
            yield f"{where or 'file'}: {item['msg'][0].lower()}{item['msg'][1:]}{was}"


def _plain(bound: float) -> str:
    return str(int(bound)) if bound == int(bound) else str(bound)


def _shown(where: str, value: object) -> str:
    """What was given, where it is short and can be no secret: also a secret may stand in the wrong place."""
    name = where.rpartition(".")[2]
    secret = SECRET.search(name) or (isinstance(value, str) and (SECRET.search(where) or "@" in value))
    if secret or isinstance(value, dict | list | tuple) or len(repr(value)) >= LONGEST_SHOWN:
        return ""
    return f" (was {value!r})"


def disagreements(raw: Mapping[str, Any]) -> Iterator[str]:
    """What single values cannot show, of a file that may have anything else wrong."""
    identity, models = raw.get("identity"), raw.get("models")
    if isinstance(identity, Mapping):
        yield from (f"identity.{problem}" for problem in disagreements_of_identity(identity))
    for at, model in enumerate(_entries(models)):
        yield from (f"models.{at}.{problem}" for problem in disagreements_of_model(model))
    yield from disagreements_of_all(raw)


def disagreements_of_all(raw: Mapping[str, Any]) -> Iterator[str]:
    """What sections cannot show by themselves."""
    yield from disagreements_of_models(raw.get("models"))
    yield from _repeated("limits", [rule.get("name") for rule in _entries(raw.get("limits"))])
    identity, admin, store = _section(raw, "identity"), _section(raw, "admin"), _section(raw, "store")
    if admin.get("port") is not None and store.get("url") is None:
        yield "store.url: is needed by the admin API (admin.port)"
    administrators = _entries(admin.get("keys"))
    yield from _repeated("admin.keys", [key.get("name") for key in administrators])
    digests = [key.get("digest") for key in administrators]
    yield from _repeated("admin.keys", digests)
    callers = {key.get("digest") for key in _entries(identity.get("keys"))}
    for at, digest in enumerate(digests):
        if digest in callers:
            yield f"admin.keys.{at}.digest: is that of a caller's key; an administrator's key opens nothing else"
    wanted_by = "admin.keys" if administrators else "store" if store.get("url") is not None else None
    if wanted_by and not _has_secret(identity) and not _entries(identity.get("keys")):
        yield f"identity.secret_file: is needed to check the digests of keys ({wanted_by} has some)"


def disagreements_of_identity(identity: Mapping[str, Any]) -> Iterator[str]:
    keys = _entries(identity.get("keys"))
    tenants = [tenant.get("name") for tenant in _entries(identity.get("tenants", [{"name": "default"}]))]
    for at, key in enumerate(keys):
        tenant = key.get("tenant", "default")
        if tenants and isinstance(tenant, str) and tenant not in tenants:
            known = ", ".join(sorted(name for name in tenants if isinstance(name, str)))
            yield f"keys.{at}.tenant: `{tenant}` is not one of the tenants ({known})"
    yield from _repeated("tenants", tenants)
    yield from _repeated("keys", [key.get("name") for key in keys])
    yield from _repeated("keys", [key.get("digest") for key in keys])
    issuers = _entries(identity.get("issuers"))
    yield from _repeated("issuers", [issuer.get("name") for issuer in issuers])
    yield from _repeated("issuers", [issuer.get("issuer") for issuer in issuers])
    for at, issuer in enumerate(issuers):
        url = issuer.get("issuer")
        if issuer.get("jwks_url") is None and isinstance(url, str) and not url.startswith(("http://", "https://")):
            yield f"issuers.{at}.jwks_url: is needed, because `issuer` is no URL where the keys could be discovered"
    if keys and not _has_secret(identity):
        yield "secret_file: is needed to check the keys' digests"


def disagreements_of_model(model: Mapping[str, Any]) -> Iterator[str]:
    yield from _repeated("replicas", [replica.get("name") for replica in _entries(model.get("replicas"))])


def disagreements_of_models(models: object) -> Iterator[str]:
    names: list[object] = []
    for model in _entries(models):
        aliases = model.get("aliases")
        names += [model.get("name"), *(aliases if isinstance(aliases, list | tuple) else ())]
    yield from _repeated("models", names)


def _has_secret(identity: Mapping[str, Any]) -> bool:
    return identity.get("secret") is not None or identity.get("secret_file") is not None


def _section(raw: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    section = raw.get(name)
    return section if isinstance(section, Mapping) else {}


def _entries(value: object) -> list[Mapping[str, Any]]:
    """The entries of a list; one that is no mapping counts as an empty one, so that the others keep their places."""
    entries = value if isinstance(value, list | tuple) else []
    return [entry if isinstance(entry, Mapping) else {} for entry in entries]


def _repeated(place: str, names: Sequence[object]) -> Iterator[str]:
    texts = [name for name in names if isinstance(name, str)]
    for name in sorted({name for name in texts if texts.count(name) > 1}):
        yield f"{place}: `{name}` is given more than once"
