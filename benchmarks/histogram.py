"""Counts of durations, in buckets that are at most 1.6 % wide, so that those of several processes can be added.

Recording happens elsewhere, in plain arrays: this is what an array becomes when a measurement is over.
"""

from collections import Counter
from collections.abc import Iterable, Mapping


def bucket(value: int) -> int:
    """The number of a value's bucket; values up to 127 have one each."""
    shift = max(0, value.bit_length() - 7)
    return (shift << 6) + (value >> shift)


def middle(number: int) -> float:
    """The value in the middle of a bucket."""
    if number < 128:
        return float(number)
    shift = (number >> 6) - 1
    return float(((number - (shift << 6)) << shift) + (1 << shift >> 1))


class Histogram:
    """Durations in microseconds."""

    def __init__(self, values: Iterable[int] = ()) -> None:
        self._counts: Counter[int] = Counter(map(bucket, values))

    @classmethod
    def from_json(cls, counts: Mapping[str, int]) -> "Histogram":
        histogram = cls()
        histogram._counts.update({int(number): count for number, count in counts.items()})
        return histogram

    def to_json(self) -> dict[str, int]:
        return {str(number): count for number, count in sorted(self._counts.items())}

    def __add__(self, other: "Histogram") -> "Histogram":
        total = Histogram()
        total._counts = self._counts + other._counts
        return total

    def __len__(self) -> int:
        return self._counts.total()

    def __repr__(self) -> str:
        return f"<Histogram of {len(self)}, p50 {self.quantile(0.5)} us, p99 {self.quantile(0.99)} us>"

    def quantile(self, share: float) -> float | None:
        """The value that this share of all values does not exceed, in microseconds; None of nothing."""
        wanted = share * len(self)
        seen = 0
        for number in sorted(self._counts):
            seen += self._counts[number]
            if seen >= wanted:
                return middle(number)
        return None

    def quantile_ms(self, share: float) -> float | None:
        value = self.quantile(share)
        return None if value is None else value / 1000
