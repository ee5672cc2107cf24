"""From the record of a call that ended to the record of what it used: one for each call that was admitted."""

from collections.abc import Callable
from datetime import UTC, datetime

from gateway.call import Usage
from gateway.store.rows import UsageRecord
from gateway.telemetry.record import CallRecord

NO_USAGE = Usage(0, 0)


class Accounting:
    """Makes usage records and hands them to `add`, which does not wait. `wall` gives seconds since the epoch."""

    def __init__(self, add: Callable[[UsageRecord], None], wall: Callable[[], float]) -> None:
        self._add = add
        self._wall = wall

    def ended(self, record: CallRecord, trace_id: str, duration_s: float) -> None:
        """Takes in a call that ended. One that was refused has used nothing and leaves nothing."""
        principal, call, lease = record.principal, record.call, record.lease
        if principal is None or call is None or lease is None:
            return
        used, first_token_s = record.usage or NO_USAGE, record.first_token_s
        self._add(
            UsageRecord(
                id=record.id,
                at=datetime.fromtimestamp(self._wall(), UTC),
                tenant=principal.tenant.name,
                key=principal.name,
                model=call.model,
                version=None,
                replica=record.replica,
                endpoint=call.path,
                stream=call.stream,
                outcome=record.outcome,
                error=record.error_type,
                prompt_tokens=used.prompt_tokens,
                completion_tokens=used.completion_tokens,
                cached_tokens=used.cached_tokens,
                measured=used.measured,
                cost_micros=lease.cost_micros,
                duration_ms=round(duration_s * 1000),
                queue_ms=round(lease.waited_s * 1000),
                first_token_ms=None if first_token_s is None else round(first_token_s * 1000),
                attempts=record.attempts,
                trace_id=trace_id,
            )
        )
