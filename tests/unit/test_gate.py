"""gateway/admission/gate.py: all limits of a call or none, and every one of them settled once."""

import asyncio
import math
from dataclasses import dataclass
from typing import Any

import pytest

from gateway.admission.appraisal import Appraiser
from gateway.admission.gate import Gate, Lease, duration
from gateway.admission.limits import LocalLimits
from gateway.admission.line import Line
from gateway.admission.pricing import Pricing
from gateway.admission.quotas import Standing
from gateway.admission.rulebook import Rulebook
from gateway.call import Call, Counted, Usage
from gateway.errors import BadCall, CallerLeft, EngineFailed, EngineLost, GateClosed, GatewayError, LimitReached
from gateway.identity.principal import Principal, Tenant
from gateway.settings import (
    UNLIMITED,
    AdmissionSettings,
    Budget,
    Limits,
    ModelSettings,
    Price,
    PricingSettings,
    Priority,
    QueueSettings,
)
from tests.unit.calls import a_call

pytestmark = pytest.mark.anyio


@dataclass
class Clock:
    now_s: float = 1000.0

    def __call__(self) -> float:
        return self.now_s


def principal(
    name: str = "key", tenant: Limits | None = None, *, team: str = "team", budget: Budget | None = None, **limits: Any
) -> Principal:
    owner = Tenant(team, tenant or Limits(), "salt", budget=budget or Budget())
    return Principal(f"key/{name}", name, owner, ("*",), Limits(**limits))


def call(max_tokens: int | None = 10, prompt_bytes: int = 0, choices: int = 1, **fields: Any) -> Call:
    return a_call(stream=True, choices=choices, max_tokens=max_tokens, prompt_bytes=prompt_bytes, **fields)


class Subject:
    """A gate before engines that have room for `room` calls beyond those that it lets run."""

    def __init__(
        self,
        clock: Clock,
        price: Price | None,
        queue: QueueSettings,
        given: dict[str, Any],
        count: int | None,
        limits: Limits,
    ) -> None:
        self.clock = clock
        self.room = math.inf
        self.limiter = LocalLimits(clock, lambda: 1_800_000_000.0)
        self.line = Line("m", queue, self._free, clock)
        model = ModelSettings(name="m", price=price, limits=limits)
        settings = AdmissionSettings(**({"count_tokens": "exact"} if count is not None else {}), **given)
        self.gate = Gate(
            settings,
            Rulebook([model], []),
            self.limiter,
            Appraiser(settings, Pricing([model], PricingSettings(accelerator_hour=3.6)), self._count),
            {"m": self.line}.__getitem__,
        )
        self._counted = count
        self.asked = 0
        self.counting = asyncio.Event()
        self.counting.set()

    async def _count(self, call: Call) -> Counted | None:
        self.asked += 1
        await self.counting.wait()
        return None if self._counted is None else Counted(self._counted, 100)

    def _free(self, on_the_way: int) -> bool:
        return self.room - self.gate.running - on_the_way >= 1

    def standings(self, who: Principal) -> dict[str, Standing]:
        quotas = Rulebook([ModelSettings(name="m")], []).quotas(who, "m")
        return {standing.quota.limit: standing for standing in self.limiter.standings(quotas)}


def subject(
    clock: Clock | None = None,
    *,
    price: Price | None = None,
    queue: QueueSettings | None = None,
    count: int | None = None,
    limits: Limits = UNLIMITED,
    **given: Any,
) -> Subject:
    return Subject(clock or Clock(), price, queue or QueueSettings(), given, count, limits)


def read(lines: bytes) -> dict[str, str]:
    """Header lines by name; each stands once, and ends as a line does."""
    assert not lines or lines.endswith(b"\r\n")
    pairs = [line.split(": ", 1) for line in lines.decode().split("\r\n")[:-1]]
    found = dict(pairs)
    assert len(found) == len(pairs)
    return found


async def refusal(gate: Gate, who: Principal, asked: Call) -> LimitReached:
    with pytest.raises(LimitReached) as caught:
        await gate.enter(who, asked)
    return caught.value


async def test_a_gate_prints_its_story() -> None:
    """Running, waiting, refused, shed."""
    gate, who = subject(max_running=1).gate, principal(concurrent_calls=1)
    assert repr(gate) == "<Gate 0 running, 0 waiting, 0 refused, 0 shed>"
    lease = await gate.enter(who, call())
    with pytest.raises(GateClosed):
        await gate.enter(principal("other"), call())
    assert repr(gate) == "<Gate 1 running, 0 waiting, 0 refused, 1 shed>"
    gate.leave(lease, None)
    assert repr(gate) == "<Gate 0 running, 0 waiting, 0 refused, 1 shed>"


async def test_no_more_calls_are_let_in_at_once_than_may_run() -> None:
    """Also while each of them waits to know what it may take."""
    it = subject(count=1, max_running=3)
    it.counting = asyncio.Event()
    who = principal(tokens_per_minute=1000)
    async with asyncio.TaskGroup() as group:
        calls = [
            group.create_task(waiting_in_vain(it.gate, who) if n > 2 else it.gate.enter(who, call())) for n in range(6)
        ]
        await turns()
        it.counting.set()
    assert repr(it.gate) == "<Gate 3 running, 0 waiting, 0 refused, 3 shed>"
    assert all(task.done() for task in calls)


@pytest.mark.parametrize(
    ("limits", "asked", "limit", "retry_after_s"),
    [
        pytest.param({"requests_per_minute": 1}, call(), "requests_per_minute", 60, id="requests"),
        pytest.param({"tokens_per_minute": 15}, call(), "tokens_per_minute", 28, id="tokens"),
        pytest.param({"tokens_per_day": 15}, call(), "tokens_per_day", 28 * 24 * 60, id="tokens a day"),
        pytest.param({"concurrent_calls": 1}, call(), "concurrent_calls", 1, id="slots"),
        pytest.param({"tokens_per_minute": 15}, call(15), "tokens_per_minute", None, id="never"),
        pytest.param(
            {"tokens_per_minute": 15}, call(5, choices=3), "tokens_per_minute", None, id="never, with choices"
        ),
        pytest.param(
            {"requests_per_minute": 1, "concurrent_calls": 1}, call(), "requests_per_minute", 60, id="the longest wait"
        ),
    ],
)
async def test_a_refusal_says_which_limit_and_when_to_come_back(
    limits: dict[str, Any], asked: Call, limit: str, retry_after_s: float | None
) -> None:
    """Of several limits the one that takes longest, or the caller comes back too early."""
    gate, who = subject().gate, principal(**limits)
    await gate.enter(who, call())
    refused = await refusal(gate, who, asked)
    assert refused.limit == limit
    assert refused.retry_after_s == (retry_after_s and pytest.approx(retry_after_s, rel=1e-2))
    assert "key key" in refused.message
    assert ("larger than the limit" in refused.message) is (retry_after_s is None)


async def test_a_refused_call_takes_nothing_from_any_limit() -> None:
    """All limits of a call or none: what another limit still had is there for the next call."""
    it = subject()
    tenant = Limits(requests_per_minute=10, tokens_per_minute=1000, concurrent_calls=10)
    full = principal("full", tenant, concurrent_calls=1, tokens_per_minute=1000)
    await it.gate.enter(full, call())
    before = it.standings(full)
    for _ in range(5):
        await refusal(it.gate, full, call())
    assert it.standings(full) == before
    assert repr(it.gate) == "<Gate 1 running, 0 waiting, 5 refused, 0 shed>"


async def test_keys_of_a_tenant_share_its_limits() -> None:
    """A tenant's limits are one, whoever of its keys calls, and each key has its own."""
    gate, tenant = subject().gate, Limits(requests_per_minute=3)
    one, two = principal("one", tenant, requests_per_minute=2), principal("two", tenant)
    for who in (one, one, two):
        await gate.enter(who, call())
    assert "tenant team" in (await refusal(gate, two, call())).message
    assert read(gate.lines(one))["x-ratelimit-limit-requests"] == "2"
    assert read(gate.lines(two))["x-ratelimit-limit-requests"] == "3"


@pytest.mark.parametrize(
    ("size", "prompt_bytes", "fits"),
    [
        pytest.param(100, 10, True, id="a limit below the guess"),
        pytest.param(1, 0, False, id="a limit that not even the prompt and one token fit"),
        pytest.param(2, 0, True, id="a limit that they just fit"),
        pytest.param(100, 330, False, id="a prompt that fills it, and no token more"),
        pytest.param(100, 325, True, id="a prompt that leaves one token"),
        pytest.param(100, 10_000, False, id="a prompt beyond it"),
    ],
)
async def test_a_length_that_is_only_guessed_starves_no_small_limit(size: int, prompt_bytes: int, fits: bool) -> None:
    """What the caller did not say is guessed no larger than his limit has room for; a prompt is what it is."""
    gate, who = subject(completion_tokens=256).gate, principal(tokens_per_minute=size)
    asked = call(None, prompt_bytes)
    if fits:
        lease = await gate.enter(who, asked)
        assert lease.appraisal.cost.total_tokens <= size
        assert lease.appraisal.cost.completion_tokens >= 1
    else:
        assert (await refusal(gate, who, asked)).retry_after_s is None


async def test_a_length_that_the_caller_names_is_taken_at_its_word() -> None:
    """Who asks for more than his limit can ever give is told so, at once."""
    assert (await refusal(subject().gate, principal(tokens_per_minute=100), call(101))).retry_after_s is None


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
    ],
)
async def test_what_a_call_took_is_settled(
    error: BaseException | None, usage: Usage | None, events: int, tokens_left: int, requests_left: int
) -> None:
    """The difference between what was reserved and what is charged comes back; slots always come back."""
    it = subject()
    who = principal(tokens_per_minute=100, requests_per_minute=10, concurrent_calls=1)
    lease = await it.gate.enter(who, call(50))
    lease.delivery.usage, lease.delivery.events = usage, events
    for _ in range(3):  # Settling again changes nothing.
        it.gate.leave(lease, error)
    left = {limit: standing.left for limit, standing in it.standings(who).items()}
    assert left == {"tokens_per_minute": tokens_left, "requests_per_minute": requests_left, "concurrent_calls": 1}
    assert it.gate.running == 0


@pytest.mark.parametrize("error", [None, CallerLeft(), EngineLost(), RuntimeError("x"), asyncio.CancelledError()])
async def test_the_block_settles_whatever_way_it_is_left(error: BaseException | None) -> None:
    """Also by an error of ours, and by a cancellation."""
    gate, who = subject().gate, principal(concurrent_calls=1)

    async def one_call() -> Lease:
        async with gate.admit(who, call()) as lease:
            assert gate.running == 1
            if error is not None:
                raise error
            return lease

    if error is None:
        assert (await one_call()).charged is not None
    else:
        with pytest.raises(type(error)) as caught:
            await one_call()
        assert caught.value is error
    assert gate.running == 0
    await gate.enter(who, call())


async def test_a_refused_block_is_never_entered() -> None:
    """And there is nothing to settle."""
    gate, who = subject().gate, principal(concurrent_calls=1)
    await gate.enter(who, call())
    with pytest.raises(LimitReached):
        async with gate.admit(who, call()):
            raise AssertionError
    assert repr(gate) == "<Gate 1 running, 0 waiting, 1 refused, 0 shed>"


async def test_headers_tell_of_the_tightest_limit_of_each_kind() -> None:
    """Requests and tokens each from the key or the tenant, whichever has less left."""
    clock = Clock()
    gate = subject(clock).gate
    tenant = Limits(requests_per_minute=3, tokens_per_minute=6000)
    who = principal("key", tenant, requests_per_minute=60, tokens_per_minute=600)
    lease = await gate.enter(who, call(299))
    told = {
        "x-ratelimit-limit-requests": "3",
        "x-ratelimit-remaining-requests": "2",
        "x-ratelimit-reset-requests": "20s",
        "x-ratelimit-limit-tokens": "600",
        "x-ratelimit-remaining-tokens": "300",
        "x-ratelimit-reset-tokens": "30s",
    }
    assert lease.lines() == gate.lines(who)
    assert read(lease.lines()) == told
    clock.now_s += 10
    assert read(gate.lines(who)) == told | {
        "x-ratelimit-reset-requests": "10s",
        "x-ratelimit-remaining-tokens": "400",
        "x-ratelimit-reset-tokens": "20s",
    }


async def test_there_are_no_headers_about_limits_that_do_not_exist() -> None:
    """Not even zero."""
    gate = subject().gate
    assert (await gate.enter(principal(), call())).lines() == b""
    assert gate.lines(principal()) == b""
    assert gate.lines(principal("slots", concurrent_calls=3)) == b""


async def test_headers_tell_nothing_of_what_other_tenants_do() -> None:
    """A limit that all share holds everybody, and shows nobody how much of it others use."""
    it = subject(limits=Limits(requests_per_minute=2))
    who = principal(requests_per_minute=9)
    await it.gate.enter(principal("other", team="others"), call())
    lease = await it.gate.enter(who, call())
    assert read(lease.lines())["x-ratelimit-limit-requests"] == "9"
    assert read(it.gate.lines(who, "m"))["x-ratelimit-remaining-requests"] == "8"
    assert (await refusal(it.gate, who, call())).limit == "requests_per_minute"


async def test_a_debt_shows_as_nothing_left() -> None:
    """No header is negative."""
    gate, who = subject().gate, principal(tokens_per_minute=100)
    lease = await gate.enter(principal(tokens_per_minute=100), call(10))
    lease.delivery.usage = Usage(590, 10)
    gate.leave(lease, None)
    assert read(gate.lines(who))["x-ratelimit-remaining-tokens"] == "0"
    assert read(gate.lines(who))["x-ratelimit-reset-tokens"] == "6m0s"


async def test_a_call_costs_what_its_tokens_cost() -> None:
    """Its expected cost is reserved of the tenant's budget, and settled with what it did cost."""
    it = subject(price=Price(prompt=1, completion=2))
    who = principal(budget=Budget(cost_per_day=0.001))
    lease = await it.gate.enter(who, call(400))
    assert it.standings(who)["budget_cost_per_day"].left == 1000 - 801
    with pytest.raises(LimitReached):
        await it.gate.enter(who, call(400))
    lease.delivery.usage = Usage(1, 10)
    it.gate.leave(lease, None)
    assert lease.cost_micros == 21
    assert it.standings(who)["budget_cost_per_day"].left == 979


async def test_a_call_of_a_model_without_a_price_costs_its_share_of_the_replica() -> None:
    it = subject()
    lease = await it.gate.enter(principal(), call())
    lease.delivery.usage, lease.delivery.replica_s = Usage(1, 10), 2.0
    it.gate.leave(lease, None)
    assert lease.cost_micros == 2000


async def test_tokens_that_were_counted_are_reserved_as_they_are() -> None:
    """Not the estimate; and nobody counts what no limit is counted in, or what is refused anyway."""
    it, who = subject(count=33), principal(tokens_per_minute=100)
    lease = await it.gate.enter(who, call(10, prompt_bytes=1000))
    assert (lease.appraisal.cost.prompt_tokens, it.standings(who)["tokens_per_minute"].left) == (33, 57)
    await it.gate.enter(principal("free", requests_per_minute=9), call())
    assert it.asked == 1
    busy = principal("busy", requests_per_minute=1, tokens_per_minute=1000)
    await it.gate.enter(busy, call())
    await refusal(it.gate, busy, call())
    assert it.asked == 2


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (-1e-9, "0s"),
        (0.0001, "1ms"),
        (0.12, "120ms"),
        (0.9991, "1s"),
        (1, "1s"),
        (1.5, "1.5s"),
        (17.25, "17.25s"),
        (59.999, "59.999s"),
        (59.9995, "1m0s"),
        (60, "1m0s"),
        (60.2, "1m1s"),
        (119.7, "2m0s"),
        (360, "6m0s"),
        (3599.5, "1h0m0s"),
        (3725, "1h2m5s"),
        (90_000, "25h0m0s"),
    ],
)
async def test_durations_are_written_as_openai_writes_them(seconds: float, text: str) -> None:
    """Rounded up, so that nobody comes too early; no unit ever overflows into the next."""
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("budget", "count", "reserved", "told"),
    [
        pytest.param({"tokens_per_day": 10_000}, 20, 120, 100, id="as much as the context holds"),
        pytest.param({"tokens_per_day": 80}, 20, 80, 60, id="as much as is left"),
        pytest.param({"cost_per_day": 0.00008}, 20, 50, 30, id="as much as can be paid for"),
        pytest.param({"tokens_per_month": 10_000}, None, 1 + 4096, None, id="not told where it could not be counted"),
    ],
)
async def test_a_length_that_is_left_open_is_bounded_by_a_budget(
    budget: dict[str, Any], count: int | None, reserved: int, told: int | None
) -> None:
    """What the next window does not repay is reserved whole, and the engine is told to stop there."""
    it = subject(price=Price(prompt=1, completion=2), count=count)
    lease = await it.gate.enter(principal(budget=Budget(**budget)), call(None))
    assert lease.appraisal.cost.total_tokens == reserved
    assert lease.call.max_tokens == told
    assert lease.call.body.get("max_completion_tokens") == told


async def test_a_length_that_is_left_open_is_shared_out_among_the_choices() -> None:
    it = subject(count=20)
    lease = await it.gate.enter(principal(budget=Budget(tokens_per_day=80)), call(None, choices=4))
    assert (lease.call.max_tokens, lease.appraisal.cost.total_tokens) == (15, 80)


# The queue.


async def turns(*waiting: "asyncio.Task[Lease]") -> list[bool]:
    """Who has had his turn by now."""
    for _ in range(5):
        await asyncio.sleep(0)
    return [task.done() for task in waiting]


async def test_a_call_waits_while_the_engines_are_full_and_goes_on_when_one_ends() -> None:
    """And says how long it waited."""
    it = subject()
    it.room = 1
    first = await it.gate.enter(principal(), call())
    async with asyncio.TaskGroup() as group:
        second = group.create_task(it.gate.enter(principal(), call()))
        assert await turns(second) == [False]
        assert repr(it.gate) == "<Gate 1 running, 1 waiting, 0 refused, 0 shed>"
        it.clock.now_s += 2
        it.gate.leave(first, None)
        assert (await second).waited_s == 2
    assert repr(it.gate) == "<Gate 1 running, 0 waiting, 0 refused, 0 shed>"
    assert first.waited_s == 0


async def test_turns_go_to_who_had_least_and_to_no_more_than_there_is_room_for() -> None:
    """One tenant's many calls do not hold up another's one."""
    it = subject()
    it.room = 1
    running = await it.gate.enter(principal(team="many"), call())
    many, few = principal(team="many"), principal(team="few")
    async with asyncio.TaskGroup() as group:
        crowd = [group.create_task(it.gate.enter(many, call())) for _ in range(20)]
        await turns()
        one = group.create_task(it.gate.enter(few, call()))
        await turns()
        it.gate.leave(running, None)
        assert await turns(one, *crowd) == [True] + [False] * 20
        it.gate.leave(await one, None)
        assert (await turns(*crowd)).count(True) == 1
        it.room = math.inf
        it.line.stir()
        assert all(await turns(*crowd))


async def test_a_caller_who_leaves_the_queue_has_cost_nothing() -> None:
    """Neither a limit nor a turn."""
    it, who = subject(), principal(requests_per_minute=5, tokens_per_minute=100, concurrent_calls=2)
    it.room = 1
    first = await it.gate.enter(who, call())
    before = it.standings(who)
    async with asyncio.TaskGroup() as group:
        leaving = group.create_task(it.gate.enter(who, call()))
        await turns()
        leaving.cancel()
    assert it.standings(who) == before
    assert repr(it.line) == "<Line m: 0 waiting, 0 tenants>"
    it.gate.leave(first, None)
    assert (await it.gate.enter(who, call())).waited_s == 0


async def test_a_turn_whose_caller_leaves_at_that_moment_is_anothers() -> None:
    """No turn is lost between two callers."""
    it = subject()
    it.room = 1
    first = await it.gate.enter(principal(), call())
    async with asyncio.TaskGroup() as group:
        leaving = group.create_task(it.gate.enter(principal(), call()))
        staying = group.create_task(it.gate.enter(principal(), call()))
        await turns()
        it.gate.leave(first, None)
        leaving.cancel()
        assert await turns(staying) == [True]
    assert leaving.cancelled()
    assert repr(it.gate) == "<Gate 1 running, 0 waiting, 0 refused, 0 shed>"


async def test_a_turn_that_falls_to_a_caller_who_has_just_left_is_anothers() -> None:
    it = subject()
    it.room = 1
    first = await it.gate.enter(principal(), call())
    async with asyncio.TaskGroup() as group:
        leaving = group.create_task(it.gate.enter(principal(), call()))
        staying = group.create_task(it.gate.enter(principal(), call()))
        await turns()
        leaving.cancel()
        it.gate.leave(first, None)
        assert await turns(staying) == [True]
    assert leaving.cancelled()


async def test_a_call_that_cannot_have_its_turn_in_time_is_told_so() -> None:
    """With all that was reserved given back, and a hint when to come again."""
    it, who = subject(queue=QueueSettings(max_wait_s=0.001)), principal(requests_per_minute=9)
    it.room = 1
    await it.gate.enter(who, call())
    async with asyncio.TaskGroup() as group:
        late = group.create_task(waiting_in_vain(it.gate, who))
        await turns()
        it.clock.now_s += 1
        error = await late
    assert error.__class__.__name__ == "WaitTooLong"
    assert error.__dict__["retry_after_s"] > 0
    assert it.standings(who)["requests_per_minute"].left == 8
    assert repr(it.gate) == "<Gate 1 running, 0 waiting, 0 refused, 1 shed>"


async def test_the_callers_own_deadline_counts_too() -> None:
    it = subject()
    it.room = 0
    gone = call(deadline_s=it.clock.now_s)
    with pytest.raises(GatewayError, match="wait longer"):
        await it.gate.enter(principal(), gone)


async def waiting_in_vain(gate: Gate, who: Principal) -> GatewayError:
    with pytest.raises(GatewayError) as caught:
        await gate.enter(who, call())
    return caught.value


async def test_a_call_that_is_displaced_is_told_so() -> None:
    """By one of a higher class, when there is no more room to wait."""
    it = subject(queue=QueueSettings(max_waiting=1))
    it.room = 0
    high = Principal("key/high", "high", Tenant("urgent", Limits(), "salt"), ("*",), Limits(), Priority.HIGH)
    async with asyncio.TaskGroup() as group:
        pushed = group.create_task(waiting_in_vain(it.gate, principal()))
        await turns()
        urgent = group.create_task(it.gate.enter(high, call()))
        assert "Too many calls are waiting" in (await pushed).message
        it.room = 1
        it.line.stir()
        assert await turns(urgent) == [True]


async def test_a_call_that_may_wait_waits_behind_all_others() -> None:
    """OpenAI's service tier `flex`."""
    it = subject()
    it.room = 0
    async with asyncio.TaskGroup() as group:
        flexible = group.create_task(it.gate.enter(principal(), call(yielding=True)))
        await turns()
        usual = group.create_task(it.gate.enter(principal(), call()))
        await turns()
        it.room = 1
        it.line.stir()
        assert await turns(flexible, usual) == [False, True]
        it.room = 2
        it.line.stir()
