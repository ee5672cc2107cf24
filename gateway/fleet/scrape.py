"""One look at an engine over HTTP: is it healthy, what does it serve, how busy is it."""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass

import orjson

from gateway.fleet.replica import Load
from gateway.http1 import Address, Broken, Connections, OutOfFiles

MAX_BYTES = 8 * 2**20
# The gauges we steer by, in Prometheus text; an engine with several ranks has a line for each.
GAUGE = re.compile(
    rb"^vllm:(num_requests_running|num_requests_waiting|kv_cache_usage_perc)(?:\{[^}\n]*\})? ([0-9.eE+-]+)",
    re.MULTILINE,
)
DEFERRED = re.compile(
    rb'^vllm:num_requests_waiting_by_reason\{[^}\n]*reason="deferred"[^}\n]*\} ([0-9.eE+-]+)', re.MULTILINE
)


class ProbeFailed(Exception):
    """An engine that cannot be used now, and why."""


class WrongModel(ProbeFailed):
    """An engine that is well and serves something else."""

    def __init__(self, served: Iterable[str]) -> None:
        super().__init__(f"serves {', '.join(sorted(served)) or 'nothing'}")


@dataclass(frozen=True, slots=True)
class Served:
    """What an engine says it serves: model names, and the longest context in tokens where it says so."""

    names: frozenset[str]
    context_tokens: int | None


class Scraper:
    """Asks engines. Shares nothing with the calls' connections, so that a full engine is still seen."""

    def __init__(self, connections: Connections, timeout_s: float) -> None:
        self._connections = connections
        self._patience = connections.patience(timeout_s)

    async def health(self, address: Address) -> None:
        """Raises ProbeFailed unless the engine says that it is healthy."""
        status, _ = await self._get(address, "/health")
        if status != 200:
            raise ProbeFailed(f"/health answered {status}")

    async def served(self, address: Address) -> Served:
        """What the engine serves. Raises ProbeFailed."""
        status, body = await self._get(address, "/v1/models")
        if status != 200:
            raise ProbeFailed(f"/v1/models answered {status}")
        try:
            models = orjson.loads(body)["data"]
            names = frozenset(name for model in models if isinstance(name := model["id"], str))
            contexts = [length for model in models if isinstance(length := model.get("max_model_len"), int)]
        except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError):
            raise ProbeFailed("/v1/models answered something else than a list of models") from None
        return Served(names, min(contexts, default=None))

    async def load(self, address: Address) -> Load:
        """How busy the engine is; all zero for an engine without vLLM's metrics. Raises ProbeFailed."""
        status, body = await self._get(address, "/metrics")
        return parse_load(body) if status == 200 else Load()

    async def _get(self, address: Address, path: str) -> tuple[int, bytes]:
        key = f"authorization: Bearer {address.api_key}\r\n" if address.api_key else ""
        message = f"GET {path} HTTP/1.1\r\nhost: {address}\r\naccept-encoding: identity\r\n{key}\r\n".encode("latin-1")
        try:
            connection = await self._connections.acquire(address)
        except OutOfFiles:
            raise
        except Broken as broken:
            raise ProbeFailed(str(broken)) from None
        try:
            connection.send(message)
            self._patience.start(connection)
            head = await connection.head()
            body = bytearray()
            while part := await connection.read():
                body += part
                if len(body) > MAX_BYTES:
                    raise ProbeFailed(f"{path} answered without end")
        except TimeoutError:
            raise ProbeFailed(f"{path} gave no answer within {self._patience.delay_s:g} s") from None
        except Broken as broken:
            raise ProbeFailed(f"{path}: {broken}") from None
        finally:
            self._patience.stop(connection)
            self._connections.release(connection, address)
        return head.status, bytes(body)


def parse_load(exposition: bytes) -> Load:
    """The load in an engine's Prometheus text: counts added over its ranks, the fullest KV cache of them."""
    found: dict[bytes, list[float]] = {}
    deferred = ((b"deferred", value) for value in DEFERRED.findall(exposition))
    for name, value in (*GAUGE.findall(exposition), *deferred):
        try:
            number = float(value)
        except ValueError:
            continue
        if math.isfinite(number) and number >= 0:
            found.setdefault(name, []).append(number)
    return Load(
        running=int(sum(found.get(b"num_requests_running", ()))),
        waiting=int(sum(found.get(b"num_requests_waiting", ()))),
        kv_usage=min(1.0, max(0.0, max(found.get(b"kv_cache_usage_perc", ()), default=0.0))),
        deferred=int(sum(found.get(b"deferred", ()))),
    )
