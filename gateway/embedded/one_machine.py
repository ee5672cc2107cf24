"""The settings of the gateway that `pagegate up` starts: the operator's own, and the workers of this run.

A plain function from mappings to a mapping; nothing is read or written here. Whether the result is right is
checked by `settings`, as for any other file.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

BOOTSTRAP = "bootstrap"
DEFAULT_TENANT = "default"


class Worker(NamedTuple):
    """A worker of this run: the names of its model (the canonical one first), its URL, and what it runs at once."""

    name: str
    model_names: Sequence[str]
    url: str
    calls: int | None = None


class Administration(NamedTuple):
    """How this run is administered: where, with which key, and the database where the operator names none."""

    port: int
    key_digest: str
    database: str


def rendered(
    base: Mapping[str, Any],
    *,
    port: int,
    secret_file: str | None,
    key_digest: str,
    workers: Sequence[Worker],
    administration: Administration,
) -> dict[str, Any]:
    """`base`, as read from the operator's file, with what this run adds.

    Args:
        base: Settings by section; its own keys, tenants, models and replicas stay.
        port: Where the gateway listens.
        secret_file: Under what keys are hashed; None leaves what `base` says.
        key_digest: Digest of the bootstrap key, which may call every model.
        workers: Replicas to add to the pools of their models.
        administration: Where the admin API listens, and who may use it.
    """
    secret = {"secret_file": secret_file} if secret_file is not None else {}
    identity = {**(base.get("identity") or {}), **secret}
    identity["keys"] = _with_key(identity, key_digest)
    return {
        **base,
        "server": {**(base.get("server") or {}), "port": port},
        "identity": identity,
        "models": _with_workers(base.get("models") or [], workers),
        "admin": _with_administrator(base.get("admin") or {}, administration),
        "store": {"url": f"sqlite:///{administration.database}", **_given(base.get("store") or {})},
    }


def _with_key(identity: Mapping[str, Any], digest: str) -> list[dict[str, Any]]:
    keys: list[dict[str, Any]] = list(identity.get("keys") or [])
    if any(key.get("digest") == digest for key in keys):
        return keys  # the operator knows this key already, and decides what it may do
    tenants = [tenant["name"] for tenant in identity.get("tenants") or [{"name": DEFAULT_TENANT}]]
    tenant = DEFAULT_TENANT if DEFAULT_TENANT in tenants else tenants[0]
    name = _free(BOOTSTRAP, (key.get("name") for key in keys))
    return [*keys, {"name": name, "digest": digest, "tenant": tenant, "models": ["*"]}]


def _with_administrator(admin: Mapping[str, Any], administration: Administration) -> dict[str, Any]:
    keys: list[dict[str, Any]] = list(admin.get("keys") or [])
    if all(key.get("digest") != administration.key_digest for key in keys):
        name = _free(BOOTSTRAP, (key.get("name") for key in keys))
        keys.append({"name": name, "digest": administration.key_digest, "role": "admin"})
    return {**admin, "port": administration.port, "keys": keys}


def _given(section: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in section.items() if value is not None}


def _with_workers(models: Iterable[Mapping[str, Any]], workers: Sequence[Worker]) -> list[dict[str, Any]]:
    pools: dict[str, dict[str, Any]] = {model["name"]: dict(model) for model in models}
    for worker, (name, *aliases), url, calls in workers:
        pool = pools.setdefault(name, {"name": name})
        if calls is not None:
            pool.setdefault("calls_per_replica", calls)
        pool["aliases"] = list(dict.fromkeys([*pool.get("aliases", []), *aliases]))
        replicas = pool.get("replicas") or []
        replica = {"name": _free(worker, (known["name"] for known in replicas)), "url": url}
        pool["replicas"] = [*replicas, replica]
    return list(pools.values())


def _free(name: str, taken: Iterable[object]) -> str:
    """`name`, or `name-2` and so on where it is taken."""
    names = set(taken)
    if name not in names:
        return name
    return next(f"{name}-{number}" for number in range(2, len(names) + 3) if f"{name}-{number}" not in names)
