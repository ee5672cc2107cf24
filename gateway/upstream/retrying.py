"""What may be tried again before the first byte, when, and how often: tenacity policies as values."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, wait_random_exponential

from gateway.fleet.replica import Blame
from gateway.settings import UpstreamSettings
from gateway.upstream.engines import AttemptFailed

LONGEST_PAUSE_S = 2.0
# A call that two engines have broken on is not given to a third: it may be what breaks them.
MOST_BEGUN = 2


class Failure(NamedTuple):
    """What is kept of an attempt that failed; the error itself would keep the whole call."""

    blame: Blame
    begun: bool


def may_retry(error: BaseException) -> bool:
    """Whether another attempt may succeed where this one failed."""
    return isinstance(error, AttemptFailed) and error.retryable


def is_enough(failures: Sequence[Failure], attempts: int, *, untried: bool) -> bool:
    """Whether a call that failed like this has been tried often enough, of at most so many `attempts`.

    A busy engine is not asked again: that would only keep it busier. `untried`: there is one not asked yet.
    """
    if failures and failures[-1].blame is Blame.BUSY and not untried:
        return True
    return len(failures) >= attempts or sum(failure.begun for failure in failures) >= MOST_BEGUN


def further_attempts(
    settings: UpstreamSettings, failures: Sequence[Failure], untried: Callable[[], bool]
) -> AsyncRetrying:
    """The attempts after a first one that failed: at once while there are untried replicas, then with pauses.

    `failures` are those so far, as they are whenever another attempt is thought of.
    """
    exponential = wait_random_exponential(multiplier=settings.backoff_s, max=LONGEST_PAUSE_S)

    def pause(state: RetryCallState) -> float:
        return 0.0 if untried() else exponential(state)

    def stop(state: RetryCallState) -> bool:
        return is_enough(failures, settings.attempts, untried=untried())

    return AsyncRetrying(stop=stop, wait=pause, retry=retry_if_exception(may_retry), reraise=True)
