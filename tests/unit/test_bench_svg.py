"""The benchmark's plots: well-formed, to scale, and honest about what so few values can tell."""

import re
from xml.etree import ElementTree

import pytest

from benchmarks.histogram import Histogram
from benchmarks.results import Figure
from benchmarks.svg import BAR, LABEL, Bar, bars, curves


def test_bars_are_to_scale_and_show_the_range() -> None:
    """Twice as much is twice as long; what is invalid is faint; names are escaped."""
    drawn = bars([Bar("a<b", Figure(10, 8, 12), "10", 0), Bar("c", Figure(5, 5, 5), "5", 1, invalid=True)])
    root = ElementTree.fromstring(drawn)
    first, second = root.findall("rect")
    assert float(first.attrib["width"]) == pytest.approx(2 * float(second.attrib["width"]), abs=0.2)
    assert ("opacity" in first.attrib, "opacity" in second.attrib) == (False, True)
    line = root.findall("line")[0]
    assert float(line.attrib["x1"]) < LABEL + float(first.attrib["width"]) < float(line.attrib["x2"])
    assert root.findall("text")[0].text == "a<b"
    assert first.attrib["height"] == str(BAR)


def test_a_curve_rises_and_ends_where_the_values_do() -> None:
    """A hundred values say nothing of one in a thousand."""
    few, many = Histogram(range(1, 101)), Histogram(range(1, 10_001))
    root = ElementTree.fromstring(curves({"few": few, "many": many}, {"few": 0, "many": 1}))
    lines = [re.findall(r"([\d.]+),([\d.]+)", line.attrib["points"]) for line in root.findall("polyline")]
    ends = [float(line[-1][0]) for line in lines]
    assert ends[0] < ends[1]
    for line in lines:
        heights = [float(y) for _, y in line]
        assert heights == sorted(heights, reverse=True)


def test_nothing_is_drawn_of_nothing() -> None:
    """A plot without values would look like a fast gateway."""
    assert curves({"none": Histogram()}, {"none": 0}) == ""
