"""No statement of the store reads through a table that grows: what the planners of both databases say they would do.

The statements are those that the store's functions send while they are called here, each in every way.
"""

import inspect
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from itertools import product
from types import ModuleType
from typing import Any

import pytest
from sqlalchemy import Connection, event, text

from gateway.store import audit, keys, revisions, tenants, usage
from gateway.store.database import Database
from tests.unit.stored import NOW, at, entry, key, tenant, used

pytestmark = pytest.mark.anyio

MODULES = (audit, keys, revisions, tenants, usage)
GROWING = ("keys", "tenants", "usage", "spending", "audit")
READ_WHOLE = {
    # A gateway that starts reads every key and tenant that is alive.
    "WHERE keys.revoked_at IS NULL",
    "WHERE tenants.removed_at IS NULL",
}
Sent = dict[str, Any]


def some(**choices: tuple[object, ...]) -> Iterator[dict[str, Any]]:
    """Every mixture of filters."""
    for values in product(*choices.values()):
        yield dict(zip(choices, values, strict=True))


def everything(connection: Connection) -> set[Callable[..., Any]]:
    """Calls each function of the store in each way that makes another statement; returns which they were."""
    called = set[Callable[..., Any]]()

    def call(function: Callable[..., Any], *args: object, **kwargs: object) -> None:
        called.add(function)
        function(connection, *args, **kwargs)

    call(keys.add, key("new", name="new", digest="new"))
    call(keys.get, "new")
    call(keys.named, "new")
    call(keys.update, "new", {"priority": "low"})
    call(keys.rotate, "new", digest="newer", hint="wxyz", previous_until=NOW)
    call(keys.revoke, "new", NOW)
    call(keys.named, "new")
    for filters in some(
        after=(None, ("name-100", "100")),
        tenant=(None, "t1"),
        revoked=(None, True, False),
        administrators=(None, True, False),
        prefix=("", "name-1"),
    ):
        call(keys.listed, limit=10, **filters)
    call(tenants.add, tenant("new"))
    call(tenants.get, "new")
    call(tenants.update, "new", {"weight": 2.0})
    call(tenants.remove, "new", NOW)
    for filters in some(after=(None, "t1"), removed=(None, True, False), prefix=("", "t1")):
        call(tenants.listed, limit=10, **filters)
    call(revisions.following)
    call(revisions.current)
    call(revisions.changed_since, 0)
    call(revisions.changed_since, 590)
    call(revisions.changed_since, 590, "a-stamp")
    call(revisions.stamp_of, 590)
    call(audit.append, entry("new"))
    for filters in some(
        before=(None, (at(50), "50")),
        actor=(None, "a1"),
        action=(None, "do-1"),
        target=(None, "t1"),
        since=(None, at(10)),
        until=(None, at(90)),
    ):
        call(audit.listed, limit=10, **filters)
    call(usage.write, [used("new"), used("1")])
    for filters in some(
        before=(None, (at(50), "50")),
        tenant=(None, "t1"),
        key=(None, "k1"),
        model=(None, "m1"),
        since=(None, at(10)),
        until=(None, at(90)),
    ):
        call(usage.listed, limit=10, **filters)
    day = NOW.date() + timedelta(days=5)
    for groups, filters in product(
        ((), ("day",), ("tenant", "model"), ("day", "tenant", "key", "model")),
        some(tenant=(None, "t1"), key=(None, "k1"), model=(None, "m1")),
    ):
        call(usage.summed, by=groups, first=day - timedelta(days=60), last=day, **filters)
    call(usage.spent, day)
    call(usage.purge, at(10), limit=10)
    return called


def fill(connection: Connection) -> None:
    """Enough rows that reading through them all is what no planner would choose."""
    for number in range(300):
        put = key(str(number), name=f"name-{number}", digest=str(number), tenant=f"t{number % 50}")
        keys.add(connection, put)
        tenants.add(connection, tenant(f"t{number}"))
        audit.append(
            connection,
            entry(
                str(number),
                at=at(number),
                actor=f"a{number % 50}",
                action=f"do-{number % 50}",
                target=f"t{number % 50}",
            ),
        )
    usage.write(
        connection,
        [
            used(
                str(number),
                at=at(number * 86400 / 100),
                tenant=f"t{number % 50}",
                key=f"k{number % 60}",
                model=f"m{number % 70}",
            )
            for number in range(3000)
        ],
    )


@contextmanager
def recording(connection: Connection) -> Iterator[Sent]:
    """The statements that are sent within the block, each with parameters that it was sent with."""
    sent: Sent = {}

    def record(_: object, __: object, statement: str, parameters: Any, *___: object) -> None:
        sent[statement] = parameters

    event.listen(connection.engine, "before_cursor_execute", record)
    yield sent
    event.remove(connection.engine, "before_cursor_execute", record)


def functions(module: ModuleType) -> Iterator[Callable[..., Any]]:
    for name, function in inspect.getmembers(module, inspect.isfunction):
        own = function.__module__ == module.__name__ and not name.startswith("_")
        if own and next(iter(inspect.signature(function).parameters), "") == "connection":
            yield function


def plan_in_sqlite(connection: Connection, statement: str, parameters: Any) -> tuple[list[str], str]:
    """Steps that read through a growing table, and the conditions and indices by which others are found."""
    plan = [row[3] for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters)]
    # In the order of an index, a page at a time.
    paged = "LIMIT" in statement and not any("TEMP B-TREE FOR ORDER BY" in step for step in plan)
    scans = [step for step in plan if re.match(rf"SCAN (TABLE )?({'|'.join(GROWING)})\b", step)]
    return [step for step in scans if not (paged and "USING" in step)], " ".join(plan).replace("=?", " = ?")


def plan_in_postgres(connection: Connection, statement: str, parameters: Any) -> tuple[list[str], str]:
    ((plan,),) = connection.exec_driver_sql(f"EXPLAIN (FORMAT JSON) {statement}", parameters).all()
    nodes = list(nodes_of(plan[0]["Plan"], paged=False))
    found = " ".join(f"{node.get('Index Name')} {node.get('Index Cond')}" for node, _ in nodes)
    # A column of text is written `(name)::text` there.
    return [scan for node, paged in nodes if (scan := scan_of(node, paged))], re.sub(r"\((\w+)\)::text", r"\1", found)


def nodes_of(node: dict[str, Any], paged: bool) -> Iterator[tuple[dict[str, Any], bool]]:
    paged = (paged or node["Node Type"] == "Limit") and "Sort" not in node["Node Type"]
    yield node, paged
    for inner in node.get("Plans", ()):
        yield from nodes_of(inner, paged)


def scan_of(node: dict[str, Any], paged: bool) -> str:
    kind = node["Node Type"]
    if kind == "Seq Scan" and node["Relation Name"] in GROWING:
        return f"{kind} of {node['Relation Name']}"
    if "Index" in kind and "Index Cond" not in node and not paged:
        return f"{kind} through {node['Index Name']}"
    return ""


def unused_filters(statement: str, found: str) -> list[str]:
    """Filters of a listing of which none leads to its rows: it would walk through all others, page after page."""
    _, _, where = statement.partition("WHERE")
    filters = re.findall(r'\."?(tenant|key|model|actor|action|target)"? = ', where)
    partial = {
        "keys.revoked_at IS NOT NULL": ("keys_revoked",),
        # SQLite would rather walk through the names of all keys that are alive: on one machine these are few.
        "keys.role IS NOT NULL": ("keys_of_administrators", "keys USING INDEX keys_by_live_name"),
    }
    partial = {condition: indices for condition, indices in partial.items() if condition in where}
    by_column = any(re.search(rf"\b{column} = ", found) for column in filters)
    by_index = any(index in found for indices in partial.values() for index in indices)
    return [] if by_column or by_index else [*filters, *partial]


async def test_every_statement_uses_an_index(store: Database) -> None:
    """Whatever filters are mixed. What is read as a whole is named above, and nothing else."""

    def plans(connection: Connection) -> dict[str, list[str]]:
        fill(connection)
        with recording(connection) as sent:
            called = everything(connection)
        assert called == {function for module in MODULES for function in functions(module)}, "each is tried"
        assert len(sent) > 150
        if connection.dialect.name == "sqlite":
            plan_of = plan_in_sqlite
        else:
            plan_of = plan_in_postgres
            for setting in ("enable_seqscan = off",):
                connection.execute(text(f"SET LOCAL {setting}"))
            for table in GROWING:
                connection.execute(text(f"ANALYZE {table}"))
        bad: dict[str, list[str]] = {}
        for statement, parameters in sent.items():
            scans, found = plan_of(connection, statement, parameters)
            if unused := unused_filters(statement, found):
                scans.append(f"{unused} not used: {found}")
            if scans:
                bad[statement] = scans
        return bad

    bad = await store.run(plans)
    assert {statement[statement.rindex("WHERE") :].strip() for statement in bad} == READ_WHOLE, bad
