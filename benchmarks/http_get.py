"""One HTTP exchange at a time: what engines and gateways are asked beside the load, readiness and counts."""

import asyncio
from collections.abc import Iterable
from contextlib import suppress

LONGEST = 2**24


class NoAnswer(Exception):
    """Nobody listens, or what came is no reply."""


async def fetch(
    host: str,
    port: int,
    path: str,
    *,
    headers: Iterable[tuple[str, str]] = (),
    body: bytes | None = None,
    within_s: float = 5.0,
) -> tuple[int, bytes]:
    """Status and body, undecoded; on a connection of its own. Raises NoAnswer."""
    lines = [f"{'GET' if body is None else 'POST'} {path} HTTP/1.1", f"host: {host}:{port}", "connection: close"]
    lines += [f"{name}: {value}" for name, value in headers]
    if body is not None:
        lines += ["content-type: application/json", f"content-length: {len(body)}"]
    try:
        async with asyncio.timeout(within_s):
            reader, writer = await asyncio.open_connection(host, port, limit=LONGEST)
            try:
                writer.write("\r\n".join([*lines, "", ""]).encode("latin-1") + (body or b""))
                reply = await reader.read()
            finally:
                writer.close()
                with suppress(OSError):
                    await writer.wait_closed()
    except (OSError, TimeoutError) as error:
        raise NoAnswer(str(error) or "nothing came in time") from None
    head, _, rest = reply.partition(b"\r\n\r\n")
    try:
        status = int(head.split(b" ", 2)[1])
    except (IndexError, ValueError):
        raise NoAnswer(f"no HTTP reply: {reply[:80]!r}") from None
    return status, rest
