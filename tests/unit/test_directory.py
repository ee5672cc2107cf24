"""gateway/identity/directory.py and following.py: who exists, by file and database, and how changes arrive."""

import asyncio
from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from gateway.identity.directory import Directory
from gateway.identity.following import Following
from gateway.identity.keys import digest
from gateway.identity.principal import Administrator, Principal
from gateway.settings import AdminKeySettings, IdentitySettings, Priority, Role
from gateway.store.database import StoreLost
from gateway.store.rows import Changes, KeyRow, TenantRow

pytestmark = pytest.mark.anyio
SECRET = b"a secret of the tests"
DAWN = datetime(2026, 1, 1, tzinfo=UTC)


class Wall:
    """Wall time that stands still."""

    def __init__(self) -> None:
        self.now = DAWN

    def __call__(self) -> float:
        return self.now.timestamp()


def directory(wall: Wall | None = None, *, complete: bool = True, **identity: Any) -> Directory:
    settings = IdentitySettings.model_validate({"secret": SECRET.decode(), **identity})
    administrators = [AdminKeySettings(name="root", digest=digest("pga-root", SECRET), role=Role.ADMIN)]
    return Directory(settings, administrators, SECRET, wall or Wall(), complete=complete)


def key(secret: str = "pg-one", **fields: Any) -> KeyRow:
    made = {"id": f"id-{secret}", "name": secret, "tenant": "acme", "hint": secret[-4:], "created_at": DAWN}
    return KeyRow(**{**made, "digest": digest(secret, SECRET), **fields})


def tenant(name: str = "acme", **fields: Any) -> TenantRow:
    return TenantRow(**{"name": name, "created_at": DAWN, **fields})


def name_of(found: Principal | Administrator | None) -> str | None:
    return None if found is None else found.name


def test_a_key_of_the_database_is_found_and_acts_for_its_tenant() -> None:
    """With what its row and its tenant's say."""
    subject = directory()
    row = key(models=("tiny",), limits={"requests_per_minute": 5}, priority=None)
    subject.follow(1, [tenant(weight=3.0, priority="high", budget={"tokens_per_day": 9})], [row])
    found = subject.find("pg-one")
    assert isinstance(found, Principal)
    assert (found.id, found.models, found.limits.requests_per_minute) == ("key/id-pg-one", ("tiny",), 5)
    assert (found.tenant.name, found.tenant.weight, found.priority) == ("acme", 3.0, Priority.HIGH)
    assert found.tenant.budget.tokens_per_day == 9
    assert repr(subject) == "<Directory 2 keys, 2 tenants, revision 1>"


def test_a_caller_is_the_same_value_while_nothing_of_him_changes() -> None:
    """What is worked out for him is kept by it."""
    subject = directory()
    subject.follow(1, [tenant()], [key(), key("pg-two")])
    found, other = subject.find("pg-one"), subject.find("pg-two")
    subject.follow(2, [], [key("pg-two", limits={"concurrent_calls": 1})])
    assert subject.find("pg-one") is found
    assert subject.find("pg-two") is not other


@pytest.mark.parametrize("after", [timedelta(0), timedelta(seconds=1)])
def test_a_key_ends_at_its_time(after: timedelta) -> None:
    """To the moment; before it, it is good."""
    wall = Wall()
    subject = directory(wall)
    subject.follow(1, [tenant()], [key(expires_at=DAWN + timedelta(hours=1))])
    wall.now = DAWN + timedelta(minutes=59, seconds=59)
    assert name_of(subject.find("pg-one")) == "pg-one"
    wall.now = DAWN + timedelta(hours=1) + after
    assert subject.find("pg-one") is None


def test_a_key_of_the_file_ends_at_its_time_too() -> None:
    wall = Wall()
    held = {"name": "k", "digest": digest("pg-k", SECRET), "expires_at": "2026-01-01T01:00:00+00:00"}
    subject = directory(wall, keys=[held])
    assert name_of(subject.find("pg-k")) == "k"
    wall.now = DAWN + timedelta(hours=1)
    assert subject.find("pg-k") is None


def test_a_rotated_key_opens_with_both_until_the_grace_ends() -> None:
    """And its end ends the old one too, if it is earlier."""
    wall = Wall()
    subject = directory(wall)
    rotated = key("pg-new", id="id", previous_digest=digest("pg-old", SECRET), previous_until=DAWN + timedelta(hours=1))
    subject.follow(1, [tenant()], [rotated])
    assert subject.find("pg-new") is subject.find("pg-old") is not None
    wall.now = DAWN + timedelta(hours=1)
    assert subject.find("pg-old") is None
    assert subject.find("pg-new") is not None
    subject.follow(2, [], [replace(rotated, expires_at=DAWN + timedelta(minutes=30))])
    wall.now = DAWN + timedelta(minutes=31)
    assert subject.find("pg-old") is subject.find("pg-new") is None


def test_a_revoked_key_is_gone_with_the_one_before_it() -> None:
    subject = directory()
    held = key(previous_digest=digest("pg-old", SECRET), previous_until=DAWN + timedelta(days=1))
    subject.follow(1, [tenant()], [held])
    subject.follow(2, [], [replace(held, revoked_at=DAWN)])
    assert subject.find("pg-one") is subject.find("pg-old") is None
    assert repr(subject) == "<Directory 1 keys, 2 tenants, revision 2>"


def test_a_tenant_that_changes_changes_all_of_its_keys() -> None:
    """Also when it is removed, and when it comes back."""
    subject = directory()
    subject.follow(1, [tenant()], [key(), key("pg-two")])
    subject.follow(2, [tenant(limits={"concurrent_calls": 4})], [])
    for each in ("pg-one", "pg-two"):
        found = subject.find(each)
        assert isinstance(found, Principal)
        assert found.tenant.limits.concurrent_calls == 4
    subject.follow(3, [tenant(removed_at=DAWN)], [])
    assert subject.find("pg-one") is subject.find("pg-two") is None
    subject.follow(4, [tenant()], [])
    assert name_of(subject.find("pg-one")) == "pg-one"


def test_the_file_wins_over_the_database() -> None:
    """A key of the same name or digest, a tenant of the same name: the file's stands."""
    own = {"name": "mine", "digest": digest("pg-mine", SECRET), "tenant": "acme", "models": ["a"]}
    subject = directory(tenants=[{"name": "acme", "weight": 7}], keys=[own])
    stolen = key("pg-mine", id="x", name="other", models=("*",))
    shadow = key("pg-shadow", id="y", name="mine")
    pretender = key("pga-pretender", id="z", name="root", role="admin")
    subject.follow(1, [tenant(weight=1.0)], [stolen, shadow, pretender, key()])
    assert subject.find("pga-pretender") is None
    found = subject.find("pg-mine")
    assert isinstance(found, Principal)
    assert (found.name, found.models, found.tenant.weight) == ("mine", ("a",), 7)
    assert subject.find("pg-shadow") is None
    assert name_of(subject.find("pg-one")) == "pg-one"
    subject.follow(2, [tenant(removed_at=DAWN)], [replace(stolen, revoked_at=DAWN)])
    assert subject.find("pg-mine") is found


def test_administrators_are_no_callers() -> None:
    """Neither the file's nor the database's."""
    subject = directory()
    subject.follow(1, [], [key("pga-op", role="operator", tenant="")])
    assert subject.find("pga-root") == Administrator("root", Role.ADMIN)
    assert subject.find("pga-op") == Administrator("pga-op", Role.OPERATOR)


def test_a_row_that_cannot_be_understood_opens_nothing_and_holds_up_no_other() -> None:
    """A later version may have written it; the others are followed, and the operator is told."""
    told: list[str] = []
    settings = IdentitySettings.model_validate({"secret": SECRET.decode()})
    subject = Directory(settings, (), SECRET, Wall(), unreadable=told.append)
    newer = [
        key("pg-a", limits={"images_per_minute": 5}),
        key("pg-b", priority="urgent"),
        key("pga-c", role="owner"),
        key("pg-d", models=5),
        key("pg-e", limits="{broken"),
    ]
    broken = [tenant("broken", budget={"cost_per_day": 1e308}), tenant("light", weight=1e-307)]
    subject.follow(1, [tenant(), *broken], [*newer, key()])
    assert name_of(subject.find("pg-one")) == "pg-one"
    assert not [each.name for each in newer if subject.find(each.name)]
    assert subject.tenant("broken") is subject.tenant("light") is None
    assert sorted(told) == [
        "key pg-a",
        "key pg-b",
        "key pg-d",
        "key pg-e",
        "key pga-c",
        "tenant broken",
        "tenant light",
    ]


class Database:
    """Answers in the order in which it is told to; remembers what it was asked."""

    def __init__(self, *answers: Changes | StoreLost) -> None:
        self._answers = list(answers)
        self.asked: list[int] = []
        self.stamps: list[str] = []
        self.asked_now = asyncio.Event()

    async def changes(self, revision: int, stamp: str) -> Changes:
        self.asked.append(revision)
        self.stamps.append(stamp)
        self.asked_now.set()
        answer = self._answers.pop(0) if self._answers else Changes(revision, (), ())
        if isinstance(answer, StoreLost):
            raise answer
        return answer

    async def until_asked(self, times: int) -> None:
        while len(self.asked) < times:
            self.asked_now.clear()
            await self.asked_now.wait()


def changes(revision: int, keys: Iterable[KeyRow] = ()) -> Changes:
    return Changes(revision, tuple(keys), (tenant(),))


async def test_what_the_database_holds_is_known_before_the_first_call() -> None:
    """And what changes there arrives by itself."""
    subject, database = directory(complete=False), Database(changes(3, [key()]), changes(4, [key("pg-two")]))
    async with Following(subject, database.changes, 0.001, lambda why: None) as following:
        assert name_of(subject.find("pg-one")) == "pg-one"
        await database.until_asked(3)
        assert name_of(subject.find("pg-two")) == "pg-two"
        assert database.asked[:3] == [0, 3, 4]
        assert repr(following) == "<Following revision 4>"


async def test_whoever_changed_something_need_not_wait_for_the_next_look() -> None:
    subject, database = directory(complete=False), Database(changes(1), changes(2, [key()]))
    async with Following(subject, database.changes, 3600, lambda why: None) as following:
        await following.at_once()
        assert name_of(subject.find("pg-one")) == "pg-one"


async def test_a_database_that_is_lost_changes_nothing_and_is_told_of_once() -> None:
    """What is known stays known; that it is back is told as well."""
    told: list[str] = []
    lost = StoreLost("it does not answer")
    subject, database = directory(complete=False), Database(changes(1, [key()]), lost, lost, changes(2))
    async with Following(subject, database.changes, 0.001, told.append):
        await database.until_asked(5)
        assert name_of(subject.find("pg-one")) == "pg-one"
    assert told == ["it does not answer", ""]


async def test_a_database_that_is_not_there_yet_holds_up_no_start() -> None:
    """The directory says that it does not know everything until it was read once."""
    subject, database = directory(complete=False), Database(StoreLost("away"), changes(0))
    async with Following(subject, database.changes, 0.001, lambda why: None):
        assert not subject.complete
        await database.until_asked(3)
        assert subject.complete


async def test_a_database_that_was_put_back_is_read_anew() -> None:
    """From a backup, say: a key that was made since is gone, one that was revoked since is not."""
    first = Changes(8, (key(),), (tenant(),), "of 8")
    since = Changes(9, (key("pg-made-since"), key(revoked_at=DAWN)), (), "of 9")
    backup = Changes(12, (key(),), (tenant(),), "of another 12", whole=True)
    subject, database = directory(complete=False), Database(first, since, backup)
    async with Following(subject, database.changes, 0.001, lambda why: None):
        await database.until_asked(5)
        assert name_of(subject.find("pg-one")) == "pg-one"
        assert subject.find("pg-made-since") is None
        assert name_of(subject.find("pga-root")) == "root"
        assert database.asked[:4] == [0, 8, 9, 12]
        assert database.stamps[:4] == ["", "of 8", "of 9", "of another 12"]
