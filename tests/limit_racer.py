"""A process that reserves as fast as it can, as gateways do that share limits: `python -m tests.limit_racer`.

Arguments: the URL of a Redis, a name, how many calls, how many leases live (seconds), and the quotas and the demand of
each call as JSON. It says `ready`, waits for a line, reserves all calls at once, says how many were admitted, and holds
them until its input ends. Then it is gone without settling.
"""

import asyncio
import json
import random
import sys
import time
from collections.abc import Sequence

from pydantic import SecretStr

from gateway.admission.limits import LocalLimits
from gateway.admission.quotas import Demand, Kind, Quota, Unit
from gateway.admission.shared import SharedLimits
from gateway.errors import LimitReached
from gateway.redis import Redis
from gateway.settings import RedisSettings

PATIENCE_S = 60.0


class Racer:
    """Such a process, for the test that started it. Use as `async with`: on leaving it is killed."""

    def __init__(
        self, url: str, name: str, calls: int, quotas: Sequence[Quota], demand: Demand, lease_s: float = 15
    ) -> None:
        self._arguments = (url, name, str(calls), str(lease_s), json.dumps([list(quotas), list(demand)]))

    async def __aenter__(self) -> "Racer":
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.limit_racer", *self._arguments),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        assert await self._line() == "ready"
        return self

    async def __aexit__(self, *exc: object) -> None:
        if self._process.returncode is None:
            self._process.kill()
        await self._process.wait()

    async def admitted(self) -> int:
        """Lets it go; how many of its calls were admitted."""
        assert self._process.stdin is not None
        self._process.stdin.write(b"go\n")
        return int(await self._line())

    async def kill(self) -> None:
        """By SIGKILL: it settles nothing and takes leave of nobody."""
        self._process.kill()
        await self._process.wait()

    async def _line(self) -> str:
        assert self._process.stdout is not None
        async with asyncio.timeout(PATIENCE_S):
            return (await self._process.stdout.readline()).decode().strip()


async def race(url: str, name: str, calls: int, lease_s: float, told: str) -> None:
    listed, demanded = json.loads(told)
    quotas = tuple(
        Quota(identifier, owner, limit, Kind(kind), Unit(unit), *rest)
        for identifier, owner, limit, kind, unit, *rest in listed
    )
    demand = Demand(*demanded)
    # Nothing that is counted here may be decided elsewhere.
    settings = RedisSettings(url=SecretStr(url), timeout_s=1, lease_s=lease_s)
    admitted = 0
    async with Redis(settings, random.Random(name)) as redis:
        local = LocalLimits(time.monotonic, time.time)
        async with SharedLimits(redis, settings, local, name, time.monotonic) as limits:
            print("ready", flush=True)
            loop = asyncio.get_running_loop()
            await loop.run_in_executor(None, sys.stdin.readline)

            async def call(number: int) -> None:
                nonlocal admitted
                try:
                    held = await limits.reserve(quotas, demand, f"{name}-{number}")
                except LimitReached:
                    return
                assert held.shared
                admitted += 1

            await asyncio.gather(*map(call, range(calls)))
            print(admitted, flush=True)
            await loop.run_in_executor(None, sys.stdin.readline)


if __name__ == "__main__":
    asyncio.run(race(sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4]), sys.argv[5]))
