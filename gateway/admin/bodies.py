"""What administrators may send: bodies and queries as frozen models, in which every problem of a call is named.

A change is a JSON merge patch (RFC 7396): what is not given stays, null takes away, objects are merged. What a thing
may be called and hold is said in `settings.py`, so that the file and the database hold the same.
"""

import re
from collections.abc import Mapping
from datetime import UTC, date, datetime, time, timedelta
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from gateway.errors import BadCall
from gateway.problems import problems_of
from gateway.settings import NO_BUDGET, UNLIMITED, Budget, Limits, Name, Priority, Role, Weight
from gateway.settings import Pattern as AnyPattern
from gateway.wire import json_text

DAY_S = 86_400
LONGEST_LIFE_S = 3650 * DAY_S
LONGEST_GRACE_S = 30 * DAY_S
MOST_PATTERNS = 64
MOST_ROWS = 1000
DEFAULT_ROWS = 100
MOST_DAYS = 400
MOST_PROBLEMS = 20
LONGEST_PROBLEM = 200
OUR_YEARS = range(2000, 2200)
Dated = TypeVar("Dated", bound=date)
DAY = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")


def _printable(text: str) -> str:
    """What is shown in logs and terminals must not be able to steer them."""
    if not text.isprintable():
        raise ValueError("must hold printable characters only, no line ends or control characters")
    return text


def _day(text: object) -> object:
    """Numbers are no days, whatever else they may be read as."""
    if isinstance(text, str) and not DAY.fullmatch(text):
        raise ValueError("must be a day (YYYY-MM-DD)")
    return text


def _moment(text: object) -> object:
    """A day, or a time; the latter means nothing without a time zone."""
    if not isinstance(text, str):
        return text
    try:
        found = date.fromisoformat(text) if DAY.fullmatch(text) else datetime.fromisoformat(text)
    except ValueError:
        raise ValueError("must be a day (YYYY-MM-DD) or a time with a time zone (RFC 3339)") from None
    if isinstance(found, datetime) and found.tzinfo is None:
        raise ValueError("must have a time zone, e.g. Z for UTC")
    return found


def _of_our_time(when: Dated) -> Dated:
    """What lies at the ends of the calendar cannot be reckoned with."""
    if when.year not in OUR_YEARS:
        raise ValueError(f"must be in a year from {OUR_YEARS[0]} to {OUR_YEARS[-1]}")
    return when


Day = Annotated[date, BeforeValidator(_day), AfterValidator(_of_our_time)]
Moment = Annotated[AwareDatetime | date, BeforeValidator(_moment), AfterValidator(_of_our_time)]
End = Annotated[AwareDatetime, AfterValidator(_of_our_time)]
Pattern = Annotated[AnyPattern, AfterValidator(_printable)]
Patterns = Annotated[tuple[Pattern, ...], Field(max_length=MOST_PATTERNS)]
Label = Annotated[str, Field(min_length=1, max_length=64), AfterValidator(_printable)]
Text = Annotated[str, Field(max_length=512), AfterValidator(_printable)]
Labels = Annotated[dict[Label, Text], Field(max_length=16)]
# Null takes a label away.
LabelChanges = Annotated[dict[Label, Text | None], Field(max_length=32)]
Life = Annotated[int, Field(gt=0, le=LONGEST_LIFE_S)]


class Body(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class _Expiring(Body):
    expires_at: End | None = Field(None, description="When the key ends (RFC 3339, with a time zone).")
    expires_in_s: Life | None = Field(None, description="The same, in seconds from now.")

    @model_validator(mode="after")
    def _says_it_once(self) -> Self:
        if self.expires_at is not None and self.expires_in_s is not None:
            raise ValueError("expires_in_s: cannot be given beside expires_at")
        return self

    def ends_at(self, now: datetime) -> datetime | None:
        """When the key ends, in UTC. Raises BadCall for a time that is past."""
        if self.expires_in_s is not None:
            return now + timedelta(seconds=self.expires_in_s)
        if self.expires_at is not None and self.expires_at <= now:
            raise BadCall("expires_at: must be in the future", "expires_at")
        return self.expires_at.astimezone(UTC) if self.expires_at is not None else None


class NewKey(_Expiring):
    """A key to be made."""

    name: Name = Field(description="What the key is called in logs and in what was used.")
    role: Role | None = Field(
        None, description="Makes an administrator's key, with this role; it calls no model and has no tenant."
    )
    tenant: Name = Field("default", description="The tenant that the key acts for.")
    models: Patterns = Field(("*",), description="Models it may call, as shell patterns on canonical names.")
    limits: Limits = Field(UNLIMITED, description="Limits of this key alone.")
    priority: Priority | None = Field(None, description="The class of its calls; default: the tenant's.")
    metadata: Labels = Field({}, description="Up to 16 texts of your own.")

    @model_validator(mode="after")
    def _administers_or_calls(self) -> Self:
        if self.role is not None:
            _refuse_fields(self, ("tenant", "models", "limits", "priority"), "is not for an administrator's key")
        return self


class KeyChange(_Expiring):
    """What to change of a key."""

    models: Patterns | None = Field(None, description="Replaces the models that it may call.")
    limits: Limits | None = Field(None, description="Limits to change; null takes one away.")
    priority: Priority | None = Field(None, description="Null: the tenant's.")
    metadata: LabelChanges | None = Field(None, description="Texts to change; null takes one away.")

    @model_validator(mode="after")
    def _changes(self) -> Self:
        return _refuse_nothing(self, nullable={"expires_at", "priority"})


class Rotation(Body):
    """A new key in place of an old one."""

    grace_s: int = Field(DAY_S, ge=0, le=LONGEST_GRACE_S, description="Seconds that the old key goes on; 0 for none.")


class NewTenant(Body):
    """A tenant to be made."""

    name: Name = Field(description="The tenant's name.")
    models: Patterns = Field(("*",), description="Models that any of its keys may call at most, as shell patterns.")
    limits: Limits = Field(UNLIMITED, description="Limits that all its keys share.")
    budget: Budget = Field(NO_BUDGET, description="What it may use up in a day or month (UTC).")
    weight: Weight = Field(1.0, description="Its share of busy engines, against other tenants' weights.")
    priority: Priority = Field(Priority.NORMAL, description="The class of its calls before busy engines.")
    metadata: Labels = Field({}, description="Up to 16 texts of your own.")


class TenantChange(Body):
    """What to change of a tenant."""

    models: Patterns | None = Field(None, description="Replaces the models that its keys may call at most.")
    limits: Limits | None = Field(None, description="Limits to change; null takes one away.")
    budget: Budget | None = Field(None, description="Budgets to change; null takes one away.")
    weight: Weight | None = Field(None, description="Its share of busy engines.")
    priority: Priority | None = Field(None, description="The class of its calls.")
    metadata: LabelChanges | None = Field(None, description="Texts to change; null takes one away.")

    @model_validator(mode="after")
    def _changes(self) -> Self:
        return _refuse_nothing(self, nullable=set())


class Nothing(Body):
    """An act that takes nothing."""


# Queries: all texts, so they are read more loosely than bodies.


class Page(Body):
    """Which part of a list."""

    limit: int = Field(DEFAULT_ROWS, ge=1, le=MOST_ROWS, description="How many rows at most.")
    after: Annotated[str, Field(max_length=256)] | None = Field(
        None, description="`next` of the page before; without it the first page."
    )


class KeysWanted(Page):
    tenant: Name | None = Field(None, description="Keys of this tenant.")
    prefix: Name | None = Field(None, description="Keys whose names begin like this.")
    revoked: bool | None = Field(None, description="True: revoked keys only; false: none of them.")
    kind: Literal["caller", "administrator"] | None = Field(None, description="Keys that call, or that administer.")


class TenantsWanted(Page):
    prefix: Name | None = Field(None, description="Tenants whose names begin like this.")
    removed: bool | None = Field(None, description="True: removed tenants only; false: none of them.")


class Removal(Body):
    revoke_keys: bool = Field(False, description="Revoke the tenant's keys as well.")


class _Used(Body):
    tenant: Name | None = Field(None, description="What this tenant used.")
    key: Text | None = Field(None, description="What was used with this key, by name.")
    model: Name | None = Field(None, description="What was used of this model, by canonical name.")


class Days(_Used):
    """A range of days in UTC, both included; without them the last thirty."""

    since: Day | None = Field(None, description="The first day (YYYY-MM-DD, UTC); default: 29 days before `until`.")
    until: Day | None = Field(None, description="The last day; default: today.")

    def range(self, today: date) -> tuple[date, date]:
        """First and last day. Raises BadCall where they are the wrong way round."""
        last = self.until or today
        first = self.since or last - timedelta(days=29)
        if first > last:
            raise BadCall("since: must not be after until", "since")
        if (last - first).days >= MOST_DAYS:
            raise BadCall(f"since: must not be more than {MOST_DAYS} days before until", "since")
        return first, last


class SumsWanted(Days):
    group_by: Annotated[str, Field(pattern=r"^(day|tenant|key|model)(,(day|tenant|key|model))*$")] = Field(
        "day", description="What to sum by: `day`, `tenant`, `key`, `model`, several with commas between."
    )

    @property
    def groups(self) -> tuple[str, ...]:
        """The columns, each once."""
        return tuple(dict.fromkeys(self.group_by.split(",")))


class Span(Body):
    """A span of time; a day without a time is its beginning in UTC, as `until` its end."""

    since: Moment | None = Field(None, description="From then on (RFC 3339 with a time zone, or a day in UTC).")
    until: Moment | None = Field(None, description="Until then, exclusively; a day with all its hours.")

    @property
    def start(self) -> datetime | None:
        return _at(self.since, 0)

    @property
    def end(self) -> datetime | None:
        return _at(self.until, 1)


class RecordsWanted(Span, _Used, Page):
    pass


class RecordsExport(Span, _Used):
    format: Literal["csv", "jsonl"] = Field("jsonl", description="How the records are written.")


class SumsExport(SumsWanted):
    format: Literal["csv", "jsonl"] = Field("jsonl", description="How the sums are written.")


class _EntriesOf(Span):
    actor: Text | None = Field(None, description="What this administrator did.")
    action: Annotated[str, Field(pattern=r"^[a-z]+(\.[a-z]+)?$")] | None = Field(
        None, description="Acts of this kind, e.g. `keys.create`."
    )
    target: Text | None = Field(None, description="What was done to this key or tenant.")


class EntriesWanted(_EntriesOf, Page):
    pass


class EntriesExport(_EntriesOf):
    pass


Sent = TypeVar("Sent", bound=Body)


def read(kind: type[Sent], raw: bytes) -> Sent:
    """A body. Raises BadCall with every problem; an empty body is an empty object."""
    raw = raw.strip() or b"{}"
    json_text.parse(raw)
    try:
        return kind.model_validate_json(raw, strict=True)
    except ValidationError as error:
        raise _bad(error) from None


def query(kind: type[Sent], pairs: Mapping[str, str], repeated: bool = False) -> Sent:
    """A query. Raises BadCall with every problem; a parameter given twice is one."""
    if repeated:
        raise BadCall("A parameter of the query is given more than once.")
    try:
        return kind.model_validate(dict(pairs))
    except ValidationError as error:
        raise _bad(error) from None


def merged(old: Mapping[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    """A JSON object after a merge patch (RFC 7396) of one level."""
    return {name: value for name, value in {**old, **change}.items() if value is not None}


def _bad(error: ValidationError) -> BadCall:
    """Every problem in one message. Names of fields are the sender's words: they are cut short, and steer nothing."""
    problems = list(dict.fromkeys(problems_of(error)))
    told = [_tame(problem).replace(": is not a setting", ": is not known here") for problem in problems[:MOST_PROBLEMS]]
    if len(problems) > MOST_PROBLEMS:
        told.append(f"and {len(problems) - MOST_PROBLEMS} more")
    first = error.errors(include_url=False)[0]["loc"]
    return BadCall("; ".join(told), _tame(".".join(map(str, first))) or None)


def _tame(text: str) -> str:
    cut = text if len(text) <= LONGEST_PROBLEM else f"{text[:LONGEST_PROBLEM]}..."
    return "".join(letter if letter.isprintable() else f"\\u{ord(letter):04x}" for letter in cut)


def _refuse_fields(body: Body, names: tuple[str, ...], why: str) -> None:
    problems = [f"{name}: {why}" for name in names if name in body.model_fields_set]
    if problems:
        raise ValueError("\n".join(problems))


def _refuse_nothing(body: Sent, nullable: set[str]) -> Sent:
    if not body.model_fields_set:
        raise ValueError("must name something to change")
    problems = [
        f"{name}: cannot be null" for name in sorted(body.model_fields_set - nullable) if getattr(body, name) is None
    ]
    if problems:
        raise ValueError("\n".join(problems))
    return body


def _at(given: datetime | date | None, days_after: int) -> datetime | None:
    if isinstance(given, datetime):
        return given.astimezone(UTC)
    if given is None:
        return None
    return datetime.combine(given, time(), UTC) + timedelta(days=days_after)
