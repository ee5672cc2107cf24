"""Every way in which a stream of bytes may arrive in pieces."""

from itertools import pairwise
from typing import TypeVar

from hypothesis import settings
from hypothesis import strategies as st

T = TypeVar("T")

thorough = settings(deadline=None, max_examples=400)


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    """`data` cut at positions taken modulo its length; joined they are `data`, and none is empty."""
    places = sorted({cut % (len(data) + 1) for cut in cuts} | {0, len(data)})
    return [data[start:end] for start, end in pairwise(places)]


def cuts(most: int = 12) -> st.SearchStrategy[list[int]]:
    return st.lists(st.integers(0, 2**16), max_size=most)


def one_by_one(data: bytes) -> list[bytes]:
    return [data[at : at + 1] for at in range(len(data))]


def choice(*values: T) -> st.SearchStrategy[T]:
    return st.sampled_from(values)
