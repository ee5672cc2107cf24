"""Calendar windows in UTC: the day and the month that a moment lies in, and when they end. Arithmetic, no clock.

A window is known by its stamp: 20260131 for a day, 202601 for a month. Later windows have larger stamps. The scripts
that run in Redis reckon the same (`scripts.py`).
"""

from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from gateway.admission.quotas import Kind


class Window(NamedTuple):
    """From `begins_s` up to, not including, `ends_s`, in seconds since 1970 (UTC)."""

    stamp: int
    begins_s: float
    ends_s: float


def window(kind: Kind, wall_s: float) -> Window:
    """The day or the month that `wall_s` lies in."""
    day = datetime.fromtimestamp(wall_s, UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    if kind is Kind.DAY:
        return Window(int(f"{day:%Y%m%d}"), day.timestamp(), (day + timedelta(days=1)).timestamp())
    first = day.replace(day=1)
    following = (first + timedelta(days=31)).replace(day=1)
    return Window(int(f"{first:%Y%m}"), first.timestamp(), following.timestamp())


def month_of(day: int) -> int:
    """The stamp of the month that the day with this stamp lies in."""
    return day // 100


def kind_of(stamp: int) -> Kind:
    """Whether a stamp is that of a day or of a month."""
    return Kind.DAY if stamp > 999_999 else Kind.MONTH
