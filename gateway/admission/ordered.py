"""Lists kept in order by `bisect.insort`, of entries that can be found again: (key, tie, item), no two ties the same.

A list beats a heap here: entries leave from its middle as often as from its ends, both ends are wanted, and moving
ten thousand pointers costs less than comparing two tuples.
"""

from bisect import bisect_left
from typing import TypeAlias, TypeVar

T = TypeVar("T")
Entry: TypeAlias = tuple[float, int, T]


def take(entries: list[Entry[T]], entry: Entry[T]) -> None:
    """Takes out an entry that is in the list."""
    del entries[bisect_left(entries, entry)]
