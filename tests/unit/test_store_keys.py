"""Keys, tenants, their revisions and the audit log, on both databases."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta, timezone

import pytest
from sqlalchemy import Connection

from gateway.store import audit, keys, revisions, tenants
from gateway.store.database import Database
from gateway.store.rows import KeyRow, Missing, Revoked, Taken, clean
from tests.unit.stored import HOSTILE, NOW, at, entry, key, tenant

pytestmark = pytest.mark.anyio


async def names(store: Database, **filters: object) -> list[str]:
    """Names of listed keys, two a page, over all pages."""
    found: list[str] = []
    after: tuple[str, str] | None = None
    while True:
        page: Sequence[KeyRow] = await store.read(keys.listed, limit=2, after=after, **filters)  # type: ignore[arg-type]
        found += [row.name for row in page]
        if len(page) < 2:
            return found
        after = (page[-1].name, page[-1].id)


async def test_a_key_comes_back_as_it_was_put(store: Database) -> None:
    """Every field, microseconds of times included."""
    put = key(
        models=("tiny", "big-*"),
        limits={"requests_per_minute": 60},
        priority="low",
        metadata={"team": "büro", "note": "a\0b"},
        role="operator",
        expires_at=at(3600.000001),
    )
    added = await store.run(keys.add, put)
    assert added == replace(put, revision=1)
    assert await store.read(keys.get, "k1") == added
    assert await store.read(keys.named, "name-k1") == added


async def test_times_come_back_in_utc(store: Database) -> None:
    """Whatever zone a time was given in; one without a zone is a mistake of the program."""
    east = timezone(timedelta(hours=5, minutes=30))
    await store.run(keys.add, key(expires_at=NOW.astimezone(east)))
    found = (await store.read(keys.get, "k1")).expires_at
    assert found is not None
    assert (found, found.utcoffset()) == (NOW, timedelta(0))
    with pytest.raises(Exception, match="without a time zone"):
        await store.run(keys.add, key("k2", expires_at=datetime(2026, 1, 1)))


async def test_what_is_unique_is_refused_a_second_time(store: Database) -> None:
    """An id and a digest for ever, also a digest that was rotated out; a name until its key is revoked."""
    await store.run(keys.add, key("k1"))
    await store.run(keys.rotate, "k1", digest="second", hint="wxyz", previous_until=at(60))
    for other, field in (
        (key("k1", name="other", digest="other"), "id"),
        (key("k2", name="name-k1"), "name"),
        (key("k2", digest="second"), "digest"),
        (key("k2", digest="digest-k1"), "digest"),
    ):
        with pytest.raises(Taken) as refused:
            await store.run(keys.add, other)
        assert refused.value.field == field
    await store.run(keys.revoke, "k1", at(1))
    with pytest.raises(Taken, match="digest"):
        await store.run(keys.add, key("k2", name="name-k1", digest="second"))
    again = await store.run(keys.add, key("k2", name="name-k1"))
    assert await store.read(keys.named, "name-k1") == again
    await store.run(keys.revoke, "k2", at(2))
    assert (await store.read(keys.named, "name-k1")).id == "k2", "the one that was revoked last"


async def test_a_key_is_changed_rotated_and_revoked(store: Database) -> None:
    """What is not given stays; revoking twice keeps the first time; a revoked key changes no more."""
    added = await store.run(keys.add, key())
    changed = await store.run(keys.update, "k1", {"limits": {"concurrent_calls": 3}, "priority": "high"})
    assert changed == replace(added, limits={"concurrent_calls": 3}, priority="high", revision=2)
    rotated = await store.run(keys.rotate, "k1", digest="new", hint="wxyz", previous_until=at(60))
    assert (rotated.digest, rotated.previous_digest, rotated.previous_until) == ("new", "digest-k1", at(60))
    revoked = await store.run(keys.revoke, "k1", at(90))
    assert revoked == replace(rotated, revoked_at=at(90), revision=4)
    assert await store.run(keys.revoke, "k1", at(91)) == revoked
    with pytest.raises(Revoked):
        await store.run(keys.update, "k1", {"priority": None})
    with pytest.raises(Revoked):
        await store.run(keys.rotate, "k1", digest="newer", hint="wxyz", previous_until=at(60))


async def test_what_is_not_there_is_missing(store: Database) -> None:
    """Asked for by id or name, changed or removed."""

    def ask(connection: Connection) -> None:
        for function, arguments in (
            (keys.get, ("none",)),
            (keys.named, ("none",)),
            (keys.update, ("none", {})),
            (keys.revoke, ("none", NOW)),
            (tenants.get, ("none",)),
            (tenants.update, ("none", {})),
            (tenants.remove, ("none", NOW)),
        ):
            with pytest.raises(Missing):
                function(connection, *arguments)

    await store.run(ask)


async def test_keys_are_listed_by_name_in_pages(store: Database) -> None:
    """Each filter alone and together; a prefix has no wildcards; the order is by code point on both databases."""
    for id, fields in {
        "1": {"name": "b"},
        "2": {"name": "B", "tenant": "other"},
        "3": {"name": "ba%", "role": "viewer"},
        "4": {"name": "bax"},
        "5": {"name": "é"},
        "6": {"name": "a"},
    }.items():
        await store.run(keys.add, key(id, **fields))
    await store.run(keys.revoke, "6", NOW)
    await store.run(keys.add, key("7", name="a"))
    assert await names(store) == ["B", "a", "a", "b", "ba%", "bax", "é"]
    assert await names(store, tenant="other") == ["B"]
    assert await names(store, revoked=True) == ["a"]
    assert await names(store, revoked=False) == ["B", "a", "b", "ba%", "bax", "é"]
    assert await names(store, administrators=True) == ["ba%"]
    assert await names(store, administrators=False, tenant="acme", revoked=False) == ["a", "b", "bax", "é"]
    assert await names(store, prefix="ba") == ["ba%", "bax"]
    assert await names(store, prefix="ba%") == ["ba%"]
    assert await names(store, prefix="_") == []


async def test_hostile_texts_are_only_texts(store: Database) -> None:
    """As names, filters and prefixes: found again, nothing else touched. What no database holds is replaced alike."""
    for number, text in enumerate(HOSTILE):
        put = key(str(number), name=text, tenant=text, metadata={"note": text})
        added = await store.run(keys.add, put)
        assert (await store.read(keys.get, str(number))).metadata == {"note": text}
        found = await store.read(keys.named, text)
        assert (found.name, found.id) == (clean(text), added.id)
        assert await names(store, prefix=text) == [clean(text)]
        assert await names(store, tenant=text) == [clean(text)]
        await store.run(audit.append, entry(str(number), actor=text, target=text, details={"said": text}))
        (kept,) = await store.read(audit.listed, limit=9, actor=text, target=text)
        assert (kept.details, kept.actor) == ({"said": text}, clean(text))
    assert len(await names(store)) == len(HOSTILE)


async def test_a_tenant_is_added_changed_removed_and_added_again(store: Database) -> None:
    """A removed tenant keeps its row and cannot be changed; its name can be added again, as new."""
    put = tenant(budget={"cost_per_day": 1.5}, weight=2.5, models=("a", "b"), metadata={"x": "y"})
    assert await store.run(tenants.add, put) == replace(put, revision=1)
    with pytest.raises(Taken):
        await store.run(tenants.add, put)
    changed = await store.run(tenants.update, "acme", {"weight": 3.0, "limits": {"tokens_per_day": 5}})
    assert changed == replace(put, weight=3.0, limits={"tokens_per_day": 5}, revision=2)
    removed = await store.run(tenants.remove, "acme", at(5))
    assert (removed.removed_at, removed.revision) == (at(5), 3)
    assert await store.run(tenants.remove, "acme", at(6)) == removed
    with pytest.raises(Missing):
        await store.run(tenants.update, "acme", {"weight": 1.0})
    assert (await store.run(tenants.add, tenant())).removed_at is None
    assert await store.read(tenants.get, "acme") == tenant(revision=(await store.read(revisions.current)))


async def test_tenants_are_listed_by_name_in_pages(store: Database) -> None:
    for name in ("c", "a", "b", "ab"):
        await store.run(tenants.add, tenant(name))
    await store.run(tenants.remove, "b", NOW)

    async def listed(**filters: object) -> list[str]:
        return [row.name for row in await store.read(tenants.listed, limit=2, **filters)]  # type: ignore[arg-type]

    assert await listed() == ["a", "ab"]
    assert await listed(after="ab") == ["b", "c"]
    assert await listed(removed=True) == ["b"]
    assert await listed(removed=False, after="a") == ["ab", "c"]
    assert await listed(prefix="a") == ["a", "ab"]


async def test_changes_are_told_after_a_revision(store: Database) -> None:
    """The first time what is alive; later what changed, also by ending. A transaction that fails changes nothing."""
    assert (await store.read(revisions.changed_since, 0)).revision == 0
    await store.run(tenants.add, tenant())
    for id in ("k1", "k2"):
        await store.run(keys.add, key(id))
    await store.run(keys.revoke, "k1", NOW)
    first = await store.read(revisions.changed_since, 0)
    assert ([row.id for row in first.keys], [row.name for row in first.tenants]) == (["k2"], ["acme"])
    nothing = await store.read(revisions.changed_since, first.revision)
    assert (nothing.revision, nothing.keys, nothing.tenants) == (first.revision, (), ())

    with pytest.raises(Taken):
        await store.run(keys.add, key("k2"))
    assert await store.read(revisions.current) == first.revision

    await store.run(keys.revoke, "k2", NOW)
    await store.run(tenants.remove, "acme", NOW)
    then = await store.read(revisions.changed_since, first.revision)
    assert ([row.id for row in then.keys], [row.name for row in then.tenants]) == (["k2"], ["acme"])
    assert then.revision == first.revision + 2


async def test_the_audit_log_is_read_newest_first(store: Database) -> None:
    """By pages, each filter alone and together; entries of one instant have an order too."""
    for number in range(6):
        await store.run(
            audit.append,
            entry(f"e{number}", at=at(number // 2), actor="ada" if number % 2 else "bob", action=f"do{number // 3}"),
        )

    async def listed(**filters: object) -> list[str]:
        return [row.id for row in await store.read(audit.listed, **({"limit": 9} | filters))]  # type: ignore[arg-type]

    assert await listed() == ["e5", "e4", "e3", "e2", "e1", "e0"]
    assert await listed(limit=2, before=(at(2), "e5")) == ["e4", "e3"]
    assert await listed(actor="bob", action="do1") == ["e4"]
    assert await listed(since=at(1), until=at(2)) == ["e3", "e2"]
    assert await listed(target="k1", action="do0") == ["e2", "e1", "e0"]
    assert await store.read(audit.listed, limit=1) == [
        entry("e5", at=at(2), actor="ada", action="do1"),
    ]


async def test_a_revision_that_another_history_gave_is_told_from_ours(store: Database) -> None:
    """A database that was put back and went on has the same numbers: what is known by another stamp is told anew."""
    await store.run(keys.add, key(name="one"))
    known = await store.read(revisions.changed_since, 0)
    assert not known.whole
    same = await store.read(revisions.changed_since, known.revision, known.stamp)
    assert (same.whole, same.keys) == (False, ())
    for revision, stamp in ((known.revision, "another"), (known.revision + 7, known.stamp)):
        told = await store.read(revisions.changed_since, revision, stamp)
        assert told.whole
        assert [each.name for each in told.keys] == ["one"]
        assert told.stamp == known.stamp
