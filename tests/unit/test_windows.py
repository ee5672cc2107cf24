"""gateway/admission/windows.py: days and months in UTC."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.admission.quotas import Kind
from gateway.admission.windows import kind_of, month_of, window
from tests.unit.splitting import thorough


@pytest.mark.parametrize(
    ("at", "kind", "stamp", "begins", "ends"),
    [
        ("2026-01-30T12:00:00", Kind.DAY, 20260130, "2026-01-30", "2026-01-31"),
        ("2026-01-31T23:59:59.999", Kind.DAY, 20260131, "2026-01-31", "2026-02-01"),
        ("2026-02-01T00:00:00", Kind.DAY, 20260201, "2026-02-01", "2026-02-02"),
        ("2026-01-31T23:59:59.999", Kind.MONTH, 202601, "2026-01-01", "2026-02-01"),
        ("2028-02-29T08:00:00", Kind.MONTH, 202802, "2028-02-01", "2028-03-01"),
        ("2026-12-31T23:59:59", Kind.MONTH, 202612, "2026-12-01", "2027-01-01"),
    ],
)
def test_the_window_of_a_moment(at: str, kind: Kind, stamp: int, begins: str, ends: str) -> None:
    """It holds its first moment, and not the one at which it ends."""

    def seconds(text: str) -> float:
        return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()

    assert window(kind, seconds(at)) == (stamp, seconds(begins), seconds(ends))
    assert kind_of(stamp) is kind


@thorough
@given(st.datetimes(datetime(1971, 1, 1), datetime(2200, 1, 1)), st.sampled_from([Kind.DAY, Kind.MONTH]))
def test_one_window_follows_another(at: datetime, kind: Kind) -> None:
    """Without a gap, with a larger stamp each; and a day knows its month."""
    moment_s = at.replace(tzinfo=UTC).timestamp()
    now = window(kind, moment_s)
    assert now.begins_s <= moment_s < now.ends_s
    following = window(kind, now.ends_s)
    assert following.begins_s == now.ends_s
    assert following.stamp > now.stamp
    assert timedelta(days=1) <= timedelta(seconds=now.ends_s - now.begins_s) <= timedelta(days=31)
    assert month_of(window(Kind.DAY, moment_s).stamp) == window(Kind.MONTH, moment_s).stamp
