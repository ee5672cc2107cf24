"""What may be tried again before the first byte, when, and how often: tenacity policies as values."""

from collections.abc import Callable

from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, stop_after_attempt, wait_random_exponential

from gateway.settings import UpstreamSettings
from gateway.upstream.engines import AttemptFailed

LONGEST_PAUSE_S = 2.0


def may_retry(error: BaseException) -> bool:
    """Whether another attempt may succeed where this one failed."""
    return isinstance(error, AttemptFailed) and error.retryable


def further_attempts(settings: UpstreamSettings, untried: Callable[[], bool]) -> AsyncRetrying:
    """The attempts after a first one that failed: at once while there are untried replicas, then with pauses."""
    exponential = wait_random_exponential(multiplier=settings.backoff_s, max=LONGEST_PAUSE_S)

    def pause(state: RetryCallState) -> float:
        return 0.0 if untried() else exponential(state)

    return AsyncRetrying(
        stop=stop_after_attempt(settings.attempts - 1), wait=pause, retry=retry_if_exception(may_retry), reraise=True
    )
