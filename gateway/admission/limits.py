"""Limits as arithmetic on (state, now): buckets that refill evenly, and slots for calls that run.

No clock, no I/O. A bucket admits at most `size + t * size / 60` in any t seconds, has no window edges, and is
the continuous form of the generic cell rate algorithm (ITU-T I.371). What a call was thought to cost is taken
before it runs; what it did cost is settled afterwards, so a bucket may owe for a while.
"""

from dataclasses import dataclass

MINUTE_S = 60.0
# Units by which a level may be off after many additions.
ROUNDING = 1e-6


@dataclass(slots=True)
class Bucket:
    """`size` units a minute. `level` is what is left at `at_s`; negative while calls cost more than estimated."""

    size: int
    level: float
    at_s: float

    @classmethod
    def full(cls, size: int, now_s: float) -> "Bucket":
        return cls(size, float(size), now_s)

    def refill(self, now_s: float) -> None:
        """Brings the bucket up to now. A clock that was set back gives nothing, and goes on from there."""
        passed_s = now_s - self.at_s
        if passed_s > 0:
            level = self.level + passed_s * self.size / MINUTE_S
            self.level = level if level < self.size else self.size
        self.at_s = now_s

    def wait_s(self, units: float, now_s: float) -> float | None:
        """Seconds until `units` can be taken: 0 for now, None when they never fit."""
        if units > self.size:
            return None
        self.refill(now_s)
        lacking = units - self.level
        return lacking * MINUTE_S / self.size if lacking > ROUNDING else 0.0

    def take(self, units: float) -> None:
        self.level -= units

    def give_back(self, units: float) -> None:
        level = self.level + units
        self.level = level if level < self.size else self.size

    @property
    def left(self) -> int:
        """Whole units that can be taken."""
        return max(0, int(self.level + ROUNDING))

    def full_in_s(self) -> float:
        """Seconds until the bucket is full again."""
        return (self.size - self.level) * MINUTE_S / self.size


@dataclass(slots=True)
class Slots:
    """`size` calls at the same time."""

    size: int
    taken: int = 0

    def __repr__(self) -> str:
        return f"<Slots {self.taken} of {self.size}>"
