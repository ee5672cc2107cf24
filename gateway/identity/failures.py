"""Wrong credentials by where they come from: whoever tries many is told to slow down, and told no more than that.

A good credential passes whatever else its address did: many callers may share one.
"""

from collections.abc import Callable
from ipaddress import ip_network

MINUTE_S = 60.0
MOST_ADDRESSES = 10_000


class Failures:
    """So many failures a minute from one address, as a bucket that refills evenly; `<Failures of 2 addresses>`.

    Addresses are kept while they matter, and never more than a bounded number of them.
    """

    def __init__(self, a_minute: int, clock: Callable[[], float]) -> None:
        self._a_minute = a_minute
        self._clock = clock
        # When the bucket of an address is full again; the one that failed longest ago first.
        self._full_at_s: dict[str, float] = {}

    def wait_s(self, address: str) -> float:
        """Counts one failure. Seconds until the address may fail again, 0 while it may."""
        now_s, address = self._clock(), _neighbourhood(address)
        full_at_s = max(self._full_at_s.pop(address, now_s), now_s) + MINUTE_S / self._a_minute
        over_s = full_at_s - now_s - MINUTE_S
        # What is refused is not counted as well, or who goes on would never be heard again.
        self._full_at_s[address] = full_at_s if over_s <= 0 else full_at_s - MINUTE_S / self._a_minute
        self._forget(now_s)
        return max(0.0, over_s)

    def _forget(self, now_s: float) -> None:
        while self._full_at_s:
            address, full_at_s = next(iter(self._full_at_s.items()))
            if full_at_s > now_s and len(self._full_at_s) <= MOST_ADDRESSES:
                return
            del self._full_at_s[address]

    def __repr__(self) -> str:
        return f"<Failures of {len(self._full_at_s)} addresses>"


def _neighbourhood(address: str) -> str:
    """Of IPv6 the network of 64 bits, which whoever has one address there has all of."""
    try:
        return str(ip_network((address, 64), strict=False)) if ":" in address else address
    except ValueError:
        return address
