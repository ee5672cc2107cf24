"""The walk along a ranking until one replica answers. Nothing has reached the caller until it ends."""

from types import TracebackType
from typing import NamedTuple, Protocol

from gateway.call import Call, Delivery
from gateway.errors import EngineBroke, EngineLost, EngineStalled, NoReplica, ReplyIncomplete, forget
from gateway.fleet.replica import Blame, Replica
from gateway.settings import UpstreamSettings
from gateway.upstream.engines import Answer, AttemptFailed, Envelope
from gateway.upstream.retrying import Failure, further_attempts, is_enough, may_retry


class Engines(Protocol):
    """Sends one call to one replica. Raises AttemptFailed."""

    async def answer(self, replica: Replica, call: Call, envelope: Envelope) -> Answer: ...


class Evidence(Protocol):
    """Who wants to know what calls show of replicas: the fleet."""

    def begun(self, replica: Replica) -> float:
        """A call is under way; what `ended` wants to be given."""
        ...

    def ended(self, replica: Replica, begun: float) -> float:
        """It is not any more; the seconds of the replica that were its share."""
        ...

    def failed(self, replica: Replica, blame: Blame, why: str) -> None: ...


class AttemptSpan(Protocol):
    """One attempt in the call's trace: from sending the call to the end of the answer."""

    @property
    def traceparent(self) -> str | None: ...
    def answered(self) -> None: ...
    def end(self, error: BaseException | None, blame: Blame | None = None) -> None: ...


class Trace(Protocol):
    def attempt(self, replica: Replica, call: Call) -> AttemptSpan: ...


class Attempt(NamedTuple):
    """An attempt that is answered."""

    replica: Replica
    answer: Answer
    span: AttemptSpan
    begun: float


class Walk:
    """Replicas in the order in which to try them: the ranking, and again from its top."""

    def __init__(self, ranking: tuple[Replica, ...]) -> None:
        self._ranking = ranking
        self._tried = 0

    def next(self) -> Replica:
        replica = self._ranking[self._tried % len(self._ranking)]
        self._tried += 1
        return replica

    def untried(self) -> bool:
        return self._tried < len(self._ranking)


def blame_of(error: BaseException | None) -> Blame | None:
    """What the end of an answered call says about its replica; None where the replica is not at fault."""
    if isinstance(error, EngineStalled):
        return Blame.SLOW
    return Blame.FAULT if isinstance(error, (EngineLost, EngineBroke, ReplyIncomplete)) else None


class Dispatcher:
    """Sends calls along rankings."""

    def __init__(self, settings: UpstreamSettings, engines: Engines, evidence: Evidence) -> None:
        self._settings = settings
        self._engines = engines
        self._evidence = evidence

    def send(self, call: Call, ranking: tuple[Replica, ...], delivery: Delivery, trace: Trace) -> "Sending":
        """The first answer that a replica gives; it is closed when the block ends.

        Entering raises NoReplica for an empty ranking, and the fault of the last attempt when all have failed.
        """
        return Sending(self, call, ranking, delivery, trace)

    async def walk(self, call: Call, ranking: tuple[Replica, ...], delivery: Delivery, trace: Trace) -> Attempt:
        """The first attempt that is answered; whoever gets it has to end it. Raises as `send` does."""
        if not ranking:
            raise NoReplica(call.model)
        walk, failures = Walk(ranking), list[Failure]()
        try:
            return await self._attempt(call, walk.next(), delivery, trace, failures)
        except AttemptFailed as first:
            try:
                return await self._further(call, walk, delivery, trace, failures, first)
            finally:
                forget(first)

    def end(self, attempt: Attempt, delivery: Delivery, error: BaseException | None) -> None:
        """Ends an attempt whose answer was read, or left because of `error`."""
        blame = blame_of(error)
        attempt.answer.close()
        attempt.span.end(error, blame)
        delivery.replica_s += self._evidence.ended(attempt.replica, attempt.begun)
        if blame is not None:
            self._evidence.failed(attempt.replica, blame, str(error))

    async def _further(
        self,
        call: Call,
        walk: Walk,
        delivery: Delivery,
        trace: Trace,
        failures: list[Failure],
        first: AttemptFailed,
    ) -> Attempt:
        """What can still be done after a first attempt that failed."""

        async def another() -> Attempt:
            try:
                return await self._attempt(call, walk.next(), delivery, trace, failures)
            except AttemptFailed as failed:
                forget(failed)
                raise

        try:
            if not may_retry(first) or is_enough(failures, self._settings.attempts, untried=walk.untried()):
                raise first
            return await further_attempts(self._settings, failures, walk.untried)(another)
        except AttemptFailed as last:
            raise last.fault from last

    async def _attempt(
        self, call: Call, replica: Replica, delivery: Delivery, trace: Trace, failures: list[Failure]
    ) -> Attempt:
        """One attempt. The replica counts it as begun until it fails or, later, until its answer is closed."""
        begun = self._evidence.begun(replica)
        span = trace.attempt(replica, call)
        try:
            answer = await self._engines.answer(replica, call, Envelope(call.id, span.traceparent))
        except AttemptFailed as failed:
            failures.append(Failure(failed.blame, failed.begun))
            span.end(failed.fault, failed.blame)
            delivery.replica_s += self._evidence.ended(replica, begun)
            self._evidence.failed(replica, failed.blame, str(failed))
            raise
        except BaseException as error:
            span.end(error, None)
            delivery.replica_s += self._evidence.ended(replica, begun)
            raise
        span.answered()
        return Attempt(replica, answer, span, begun)


class Sending:
    """One call's time with an engine."""

    __slots__ = ("_attempt", "_call", "_delivery", "_dispatcher", "_ranking", "_trace")

    def __init__(
        self, dispatcher: Dispatcher, call: Call, ranking: tuple[Replica, ...], delivery: Delivery, trace: Trace
    ) -> None:
        self._dispatcher = dispatcher
        self._delivery = delivery
        self._call = call
        self._ranking = ranking
        self._trace = trace

    async def __aenter__(self) -> Answer:
        self._attempt = await self._dispatcher.walk(self._call, self._ranking, self._delivery, self._trace)
        return self._attempt.answer

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._dispatcher.end(self._attempt, self._delivery, error)
