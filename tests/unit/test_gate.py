"""gateway/admission/gate.py: all limits of a call or none, and every one of them settled once."""

import asyncio
import copy
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from gateway.admission.gate import Gate, Lease, Meter
from gateway.call import Call, Usage
from gateway.errors import BadCall, CallerLeft, EngineFailed, EngineLost, GateClosed, LimitReached
from gateway.identity.principal import Principal, Tenant
from gateway.settings import AdmissionSettings, Limits
from tests.unit.calls import a_call


@dataclass
class Clock:
    now_s: float = 1000.0

    def __call__(self) -> float:
        return self.now_s


def principal(name: str = "key", tenant: Limits | None = None, **limits: Any) -> Principal:
    return Principal(name, Tenant("team", tenant or Limits(), "salt"), ("*",), Limits(**limits))


def call(max_tokens: int | None = 10, prompt_bytes: int = 0, choices: int = 1) -> Call:
    return a_call(stream=True, choices=choices, max_tokens=max_tokens, prompt_bytes=prompt_bytes)


def gate(clock: Clock | None = None, **given: Any) -> Gate:
    return Gate(AdmissionSettings(**given), clock or Clock())


def read(lines: bytes) -> dict[str, str]:
    """Header lines by name; each stands once, and ends as a line does."""
    assert not lines or lines.endswith(b"\r\n")
    pairs = [line.split(": ", 1) for line in lines.decode().split("\r\n")[:-1]]
    found = dict(pairs)
    assert len(found) == len(pairs)
    return found


def refusal(gate: Gate, who: Principal, asked: Call) -> LimitReached:
    with pytest.raises(LimitReached) as caught:
        gate.reserve(who, asked)
    return caught.value


def test_a_gate_prints_its_story() -> None:
    """Running, refused, shed."""
    subject, who = gate(max_running=1), principal(concurrent_calls=1)
    assert repr(subject) == "<Gate 0 running, 0 refused, 0 shed>"
    lease = subject.reserve(who, call())
    with pytest.raises(GateClosed):
        subject.reserve(principal("other"), call())
    assert repr(subject) == "<Gate 1 running, 0 refused, 1 shed>"
    subject.settle(lease, call(), None)
    assert repr(subject) == "<Gate 0 running, 0 refused, 1 shed>"


@pytest.mark.parametrize(
    ("limits", "asked", "limit", "retry_after_s"),
    [
        pytest.param({"requests_per_minute": 1}, call(), "requests_per_minute", 60, id="requests"),
        pytest.param({"tokens_per_minute": 15}, call(), "tokens_per_minute", 28, id="tokens"),
        pytest.param({"concurrent_calls": 1}, call(), "concurrent_calls", 1, id="slots"),
        pytest.param({"tokens_per_minute": 15}, call(15), "tokens_per_minute", None, id="never"),
        pytest.param(
            {"tokens_per_minute": 15}, call(5, choices=3), "tokens_per_minute", None, id="never, with choices"
        ),
        pytest.param(
            {"requests_per_minute": 1, "concurrent_calls": 1}, call(), "requests_per_minute", 60, id="the longest wait"
        ),
        pytest.param(
            {"tokens_per_minute": 15, "requests_per_minute": 1, "concurrent_calls": 1},
            call(500),
            "tokens_per_minute",
            None,
            id="never is longer than any wait",
        ),
    ],
)
def test_a_refusal_says_which_limit_and_when_to_come_back(
    limits: dict[str, Any], asked: Call, limit: str, retry_after_s: float | None
) -> None:
    """Of several limits the one that takes longest, or the caller comes back too early."""
    subject, who = gate(), principal(**limits)
    subject.reserve(who, call())
    refused = refusal(subject, who, asked)
    assert refused.limit == limit
    assert refused.retry_after_s == (retry_after_s and pytest.approx(retry_after_s))
    assert "key key" in refused.message
    assert ("larger than the limit" in refused.message) is (retry_after_s is None)


def test_a_refused_call_takes_nothing_from_any_limit() -> None:
    """All limits of a call or none: what another limit still had is there for the next call."""
    subject = gate()
    tenant = Limits(requests_per_minute=10, tokens_per_minute=1000, concurrent_calls=10)
    full = principal("full", tenant, concurrent_calls=1, tokens_per_minute=1000)
    subject.reserve(full, call())
    before = copy.deepcopy(subject._meters)
    for _ in range(5):
        refusal(subject, full, call())
    assert subject._meters == before
    assert subject.running == 1


def test_keys_of_a_tenant_share_its_limits() -> None:
    """A tenant has one meter, whoever of its keys calls, and each key has its own."""
    subject, tenant = gate(), Limits(requests_per_minute=3)
    one, two = principal("one", tenant, requests_per_minute=2), principal("two", tenant)
    for who in (one, one, two):
        subject.reserve(who, call())
    assert "tenant team" in refusal(subject, two, call()).message
    assert read(subject.lines(one))["x-ratelimit-limit-requests"] == "2"
    assert read(subject.lines(two))["x-ratelimit-limit-requests"] == "3"


def test_a_key_and_a_tenant_of_the_same_name_are_two() -> None:
    """A key called as its tenant does not use up its limits."""
    subject = gate()
    who = principal("team", Limits(requests_per_minute=5), requests_per_minute=2)
    subject.reserve(who, call())
    assert sorted(meter.requests.left for meter in subject._meters.values() if meter.requests) == [1, 4]


@pytest.mark.parametrize(
    ("size", "prompt_bytes", "admitted"),
    [
        pytest.param(100, 10, True, id="a limit below the guess"),
        pytest.param(1, 0, False, id="a limit that not even the prompt and one token fit"),
        pytest.param(2, 0, True, id="a limit that they just fit"),
        pytest.param(100, 330, False, id="a prompt that fills it, and no token more"),
        pytest.param(100, 325, True, id="a prompt that leaves one token"),
        pytest.param(100, 10_000, False, id="a prompt beyond it"),
    ],
)
def test_a_length_that_is_only_guessed_starves_no_small_limit(size: int, prompt_bytes: int, admitted: bool) -> None:
    """What the caller did not say is guessed no larger than his limit has room for; a prompt is what it is."""
    subject, who = gate(completion_tokens=256), principal(tokens_per_minute=size)
    asked = call(None, prompt_bytes)
    if admitted:
        lease = subject.reserve(who, asked)
        assert lease.cost.total_tokens <= size
        assert lease.cost.completion_tokens >= 1
    else:
        assert refusal(subject, who, asked).retry_after_s is None


def test_a_length_that_the_caller_names_is_taken_at_its_word() -> None:
    """Who asks for more than his limit can ever give is told so, at once."""
    assert refusal(gate(), principal(tokens_per_minute=100), call(101)).retry_after_s is None


@pytest.mark.parametrize(
    ("error", "usage", "events", "tokens_left", "requests_left"),
    [
        pytest.param(None, Usage(20, 5), 5, 75, 9, id="measured"),
        pytest.param(None, None, 4, 95, 9, id="counted"),
        pytest.param(EngineFailed("x"), None, 0, 100, 10, id="unserved: all comes back"),
        pytest.param(BadCall("x"), None, 0, 100, 9, id="an engine would not have it"),
        pytest.param(CallerLeft(), None, 0, 99, 9, id="left: the prompt was read"),
        pytest.param(CallerLeft(), None, 4, 95, 9, id="left: and so much was had"),
        pytest.param(EngineLost(), None, 4, 95, 9, id="severed"),
        pytest.param(None, Usage(500, 50), 50, -450, 9, id="more than reserved is owed"),
    ],
)
def test_what_a_call_took_is_settled(
    error: BaseException | None, usage: Usage | None, events: int, tokens_left: float, requests_left: int
) -> None:
    """The difference between what was reserved and what is charged comes back, or is owed; slots always come back."""
    subject = gate()
    who = principal(tokens_per_minute=100, requests_per_minute=10, concurrent_calls=1)
    lease = subject.reserve(who, call(50))
    lease.delivery.usage, lease.delivery.events = usage, events
    for _ in range(3):  # Settling again changes nothing.
        subject.settle(lease, call(50), error)
    (meter,) = subject._meters.values()
    assert meter.tokens is not None
    assert meter.requests is not None
    assert meter.tokens.level == pytest.approx(tokens_left)
    assert meter.requests.left == requests_left
    assert repr(meter.slots) == "<Slots 0 of 1>"
    assert subject.running == 0


@pytest.mark.anyio
@pytest.mark.parametrize("error", [None, CallerLeft(), EngineLost(), RuntimeError("x"), asyncio.CancelledError()])
async def test_the_block_settles_whatever_way_it_is_left(error: BaseException | None) -> None:
    """Also by an error of ours, and by a cancellation."""
    subject, who = gate(), principal(concurrent_calls=1)

    async def one_call() -> Lease:
        async with subject.admit(who, call()) as lease:
            assert subject.running == 1
            if error is not None:
                raise error
            return lease

    if error is None:
        assert (await one_call()).charged is not None
    else:
        with pytest.raises(type(error)) as caught:
            await one_call()
        assert caught.value is error
    assert subject.running == 0
    subject.reserve(who, call())


@pytest.mark.anyio
async def test_a_refused_block_is_never_entered() -> None:
    """And there is nothing to settle."""
    subject, who = gate(), principal(concurrent_calls=1)
    subject.reserve(who, call())
    with pytest.raises(LimitReached):
        async with subject.admit(who, call()):
            raise AssertionError
    assert repr(subject) == "<Gate 1 running, 1 refused, 0 shed>"


def test_headers_tell_of_the_tightest_limit_of_each_kind() -> None:
    """Requests and tokens each from the key or the tenant, whichever has less left."""
    clock = Clock()
    subject = gate(clock)
    tenant = Limits(requests_per_minute=3, tokens_per_minute=6000)
    who = principal("key", tenant, requests_per_minute=60, tokens_per_minute=600)
    lease = subject.reserve(who, call(299))
    told = {
        "x-ratelimit-limit-requests": "3",
        "x-ratelimit-remaining-requests": "2",
        "x-ratelimit-reset-requests": "20s",
        "x-ratelimit-limit-tokens": "600",
        "x-ratelimit-remaining-tokens": "300",
        "x-ratelimit-reset-tokens": "30s",
    }
    assert lease.lines() == subject.lines(who)
    assert read(lease.lines()) == told
    clock.now_s += 10
    assert read(subject.lines(who)) == told | {
        "x-ratelimit-reset-requests": "10s",
        "x-ratelimit-remaining-tokens": "400",
        "x-ratelimit-reset-tokens": "20s",
    }


def test_there_are_no_headers_about_limits_that_do_not_exist() -> None:
    """Not even zero."""
    subject = gate()
    assert subject.reserve(principal(), call()).lines() == b""
    assert subject.lines(principal()) == b""
    assert subject.lines(principal("slots", concurrent_calls=3)) == b""


def test_a_debt_shows_as_nothing_left() -> None:
    """No header is negative."""
    subject, who = gate(), principal(tokens_per_minute=100)
    lease = subject.reserve(who, call())
    lease.delivery.usage = Usage(590, 10)
    subject.settle(lease, call(), None)
    assert read(subject.lines(who))["x-ratelimit-remaining-tokens"] == "0"
    assert read(subject.lines(who))["x-ratelimit-reset-tokens"] == "6m0s"


@dataclass
class Taken:
    """What was taken of one meter, as an independent book keeps it: (seconds passed, units)."""

    size: int
    entries: list[tuple[float, float]] = field(default_factory=list)

    def holds(self, passed_s: float) -> bool:
        """Whether in every window that ends now no more was taken than may be."""
        return all(
            sum(units for at_s, units in self.entries if at_s >= begun_s)
            <= self.size + (passed_s - begun_s) * self.size / 60 + 1e-3
            for begun_s, _ in self.entries
        )


class GateMachine(RuleBasedStateMachine):
    """Calls of two keys of a tenant come, run and end in any order and any way, while the clock does what it likes."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.passed_s = 0.0
        self.running: list[tuple[Lease, Call]] = []
        self.books: dict[tuple[str, str], Taken] = {}

    @initialize(
        own=st.builds(
            Limits,
            requests_per_minute=st.none() | st.integers(1, 8),
            tokens_per_minute=st.none() | st.integers(1, 400),
            concurrent_calls=st.none() | st.integers(1, 3),
        ),
        shared=st.builds(
            Limits,
            requests_per_minute=st.none() | st.integers(1, 8),
            tokens_per_minute=st.none() | st.integers(1, 400),
            concurrent_calls=st.none() | st.integers(1, 3),
        ),
    )
    def open(self, own: Limits, shared: Limits) -> None:
        self.gate = gate(self.clock, max_running=5, completion_tokens=50)
        self.principals = [principal("one", shared, **own.model_dump()), principal("two", shared)]

    @rule(seconds=st.floats(-30, 90, allow_nan=False))
    def time_passes(self, seconds: float) -> None:
        self.clock.now_s += seconds
        self.passed_s += max(0.0, seconds)

    @rule(
        who=st.integers(0, 1),
        max_tokens=st.none() | st.integers(1, 150),
        prompt_bytes=st.integers(0, 300),
        choices=st.integers(1, 2),
    )
    def a_call_comes(self, who: int, max_tokens: int | None, prompt_bytes: int, choices: int) -> None:
        asked, caller = call(max_tokens, prompt_bytes, choices), self.principals[who]
        told, before = self.gate.lines(caller), self.levels()
        try:
            lease = self.gate.reserve(caller, asked)
        except GateClosed:
            assert len(self.running) == 5
            assert self.levels() == before
            return
        except LimitReached as refused:
            assert self.levels() == before
            assert self.gate.lines(caller) == told
            assert refused.retry_after_s is None or refused.retry_after_s > 0
            return
        self.running.append((lease, asked))
        for meter in lease.meters:
            for kind, bucket, units in (
                ("requests", meter.requests, 1.0),
                ("tokens", meter.tokens, float(lease.cost.total_tokens)),
            ):
                if bucket:
                    book = self.books.setdefault((meter.owner, kind), Taken(bucket.size))
                    book.entries.append((self.passed_s, units))
                    assert bucket.level >= -1e-3, "a call was admitted for which nothing was left"
                    assert book.holds(self.passed_s)

    @precondition(lambda self: self.running)
    @rule(
        which=st.integers(0, 10),
        error=st.sampled_from([None, CallerLeft(), EngineLost(), EngineFailed("x"), RuntimeError("x")]),
        prompt=st.integers(0, 200),
        completion=st.none() | st.integers(0, 200),
        again=st.booleans(),
    )
    def a_call_ends(
        self, which: int, error: BaseException | None, prompt: int, completion: int | None, again: bool
    ) -> None:
        lease, asked = self.running.pop(which % len(self.running))
        if completion is not None:
            lease.delivery.usage = Usage(prompt, completion)
            lease.delivery.events = completion
        self.gate.settle(lease, asked, error)
        if again:
            self.gate.settle(lease, asked, None)
        assert lease.charged is not None
        for meter in lease.meters:
            for kind, bucket in (("requests", meter.requests), ("tokens", meter.tokens)):
                book = self.books.get((meter.owner, kind))
                if bucket and book:
                    refund = 1.0 if kind == "requests" else lease.cost.total_tokens - lease.charged.total_tokens
                    unserved = isinstance(error, EngineFailed)
                    book.entries.append((self.passed_s, -refund if kind == "tokens" or unserved else 0.0))

    @invariant()
    def what_runs_is_what_is_held(self) -> None:
        if not hasattr(self, "gate"):
            return
        assert self.gate.running == len(self.running)
        for meter in self.meters():
            held = sum(any(mine is meter for mine in lease.meters) for lease, _ in self.running)
            assert meter.slots is None or meter.slots.taken == held <= meter.slots.size

    @invariant()
    def nothing_is_lost(self) -> None:
        """What a bucket lacks was taken, and neither came back nor was refilled."""
        for meter in self.meters():
            for kind, bucket in (("requests", meter.requests), ("tokens", meter.tokens)):
                book = self.books.get((meter.owner, kind))
                if bucket and book:
                    assert bucket.level <= bucket.size
                    assert (
                        bucket.size - bucket.level
                        <= max(
                            (sum(units for at_s, units in book.entries[first:]) for first in range(len(book.entries))),
                            default=0.0,
                        )
                        + 1e-3
                    )

    def teardown(self) -> None:
        if not hasattr(self, "gate"):
            return
        for lease, asked in self.running:
            self.gate.settle(lease, asked, CallerLeft())
        self.clock.now_s += 10**6
        for who in self.principals:
            headers = read(self.gate.lines(who))
            for kind in ("requests", "tokens"):
                assert headers.get(f"x-ratelimit-reset-{kind}", "0s") == "0s"
        assert self.gate.running == 0
        assert all(meter.slots is None or meter.slots.taken == 0 for meter in self.meters())

    def meters(self) -> list[Meter]:
        return list(self.gate._meters.values()) if hasattr(self, "gate") else []

    def levels(self) -> dict[tuple[str, str], float]:
        return {
            (meter.owner, kind): bucket.level
            for meter in self.meters()
            for kind, bucket in (("requests", meter.requests), ("tokens", meter.tokens))
            if bucket
        }


TestGateMachine = GateMachine.TestCase
TestGateMachine.settings = settings(deadline=None, max_examples=150, stateful_step_count=30)
