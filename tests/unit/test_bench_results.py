"""What becomes of figures: medians, ratios, marks for what is invalid, and the three pages."""

from collections import Counter
from html.parser import HTMLParser

import pytest

from benchmarks import html_page, markdown
from benchmarks.histogram import Histogram
from benchmarks.jobs import Job, Kind, Outcome, Target, total
from benchmarks.results import Figure, Results, Run
from benchmarks.scenarios import FULL_NAMES, QUICK_NAMES, named
from benchmarks.script import Behaviour
from benchmarks.tabulating import remarks, sections

TARGET = Target(host="127.0.0.1", port=1, headers=(("authorization", "Bearer x"),), model="m")


def run(gateway: str, cpu: float | None, *, repetition: int = 0, **fields: object) -> Run:
    figures = {} if cpu is None else {"cpu_us_per_call": cpu}
    return Run(gateway=gateway, scenario="plain", repetition=repetition, figures=figures, **fields)  # type: ignore[arg-type]


def results(*runs: Run) -> Results:
    gateways = {one.gateway: f"what {one.gateway} <is>" for one in runs}
    return Results(facts={"machine": "a | b"}, gateways=gateways, scenarios=["plain"], runs=list(runs))


def test_a_figure_is_the_median_of_its_repetitions() -> None:
    """Lowest and highest are kept beside it."""
    found = results(*(run("g", cpu, repetition=n) for n, cpu in enumerate((30.0, 10.0, 11.0))))
    assert found.figure("g", "plain", "cpu_us_per_call") == Figure(11.0, 10.0, 30.0)
    assert found.figure("g", "plain", "other") is None


def test_costs_are_shown_against_the_yardstick() -> None:
    """Nothing is shown against itself."""
    (section,) = sections(results(run("passthrough", 20.0), run("pagegate", 50.0)))
    row = next(row for row in section.rows if row.label == "CPU per call")
    assert [str(cell) for cell in row.cells] == ["20", "50 (2.5x)"]


def test_a_figure_with_errors_is_marked_and_the_errors_are_told() -> None:
    """A load test that counts errors as answers is worthless."""
    found = results(run("good", 20.0), run("bad", 5.0, errors={"lost chunk": 3}, samples={"lost chunk": "x"}))
    (section,) = sections(found)
    assert [str(cell) for cell in section.rows[0].cells] == ["20", "5 !"]
    assert remarks(found) == ["! bad, plain is invalid: 3 x lost chunk; one said 'x'"]
    assert not found.valid


def test_a_gateway_that_failed_has_no_figures_and_says_why() -> None:
    """In place of a number."""
    found = results(run("good", 20.0), run("bad", None, failure="it did not start"))
    (section,) = sections(found)
    assert [str(cell) for cell in section.rows[0].cells] == ["20", "failed"]
    assert remarks(found) == ["! bad, plain failed: it did not start"]


def test_results_survive_their_json() -> None:
    """What was written can be shown again."""
    found = results(run("a", 20.0, notes=["so"], curves={"latency": {"5": 2}}))
    again = Results.from_json(found.to_json())
    assert again == found
    with pytest.raises(ValueError, match="format"):
        Results.from_json({"format": 0})


class Tags(HTMLParser):
    """What a page would load from elsewhere, and its text."""

    def __init__(self) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.svgs = 0
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.svgs += tag == "svg"
        self.loaded += [value for name, value in attrs if name in ("src", "href") and value]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_html_page_stands_alone() -> None:
    """Plots inside, nothing loaded, names escaped."""
    delays = Histogram([900, 1000, 30000]).to_json()
    tags = Tags()
    tags.feed(html_page.page(results(run("a", 20.0, curves={"delay": delays}), run("b", 30.0, errors={"x": 1}))))
    assert (tags.loaded, tags.svgs) == ([], 2)
    assert "what a <is>" in tags.text


def test_the_markdown_page_has_facts_table_and_what_is_wrong() -> None:
    """On one line each, whatever a gateway said."""
    page = markdown.page(results(run("a", 20.0), run("b", None, failure="it said\n  no")))
    assert "| machine | a \\| b |" in page
    assert "| CPU per call | us | 20 | failed |" in page
    assert "- ! b, plain failed: it said no" in page


def test_every_scenario_is_known_by_its_name() -> None:
    """open-N for any N."""
    assert [named(name).name for name in (*FULL_NAMES, *QUICK_NAMES)] == [*FULL_NAMES, *QUICK_NAMES]
    assert named("open-123").descriptors > 246


def test_a_job_is_divided_without_losing_a_call() -> None:
    """Connections, rate, and numbers of its own for each process; none without work."""
    job = Job(kind=Kind.HOLD, target=TARGET, connections=5, rate=30.0)
    shares = job.shares(3)
    assert [share.connections for share in shares] == [2, 2, 1]
    assert sum(share.rate for share in shares) == pytest.approx(30.0)
    assert len({share.first_number for share in shares}) == 3
    assert len(Job(kind=Kind.CLOSED, target=TARGET, connections=2).shares(8)) == 2
    assert len(Job(kind=Kind.OPEN, target=TARGET, rate=10.0).shares(2)) == 2


def test_a_job_survives_its_json() -> None:
    """It goes to its process as text."""
    job = Job(kind=Kind.OPEN, target=TARGET, behaviour=Behaviour(1, 2, 3), rate=2.5, stream=True)
    assert Job.from_json(job.to_json()) == job


def test_what_processes_found_adds_up() -> None:
    """Counts and errors are summed; the window is one."""
    one = Outcome(calls=2, errors=Counter(["x"]), window_s=4.0, durations={"gap": Histogram([1])})
    other = Outcome(
        calls=3, errors=Counter(["x", "y"]), window_s=4.1, durations={"gap": Histogram([2]), "ttft": Histogram([3])}
    )
    both = total([one, Outcome.from_json(other.to_json())])
    assert (both.calls, both.errors, both.window_s) == (5, Counter({"x": 2, "y": 1}), 4.1)
    assert (len(both.of("gap")), len(both.of("ttft")), len(both.of("latency"))) == (2, 1, 0)
