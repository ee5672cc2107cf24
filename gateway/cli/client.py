"""A client of the admin API, with nothing but the standard library: calls, pages, and files that come as a stream.

Follows no redirect, keeps no cookie and knows no proxy: the key goes to the place that was named and nowhere else.
What goes wrong is told with what helps.
"""

import http.client
import json
import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

from gateway.cli.place import KEY, KEY_FILE, URL, Lost, Place

PREFIX = "/admin/v1"
TIMEOUT_S = 30.0
BLOCK_BYTES = 64 * 1024
PAGE_ROWS = 1000
Query = Mapping[str, str | int | bool | None]


class AdminClient:
    """Calls on one admin API, each on a connection of its own. Every method raises Lost."""

    def __init__(self, place: Place) -> None:
        self._place = place

    def ask(self, method: str, path: str, *, query: Query | None = None, body: Mapping[str, Any] | None = None) -> Any:
        """What a call that succeeds answers, from JSON."""
        with self._reply(method, path, query, body) as reply:
            return _parsed(reply.read(), self._place)

    def rows(self, path: str, query: Query, at_most: int | None = None) -> list[dict[str, Any]]:
        """The rows of a list, from as many pages as it takes."""
        found: list[dict[str, Any]] = []
        after: str | None = None
        while at_most is None or len(found) < at_most:
            limit = PAGE_ROWS if at_most is None else min(PAGE_ROWS, at_most - len(found))
            page = self.ask("GET", path, query={**query, "limit": limit, "after": after})
            found += page["data"]
            after = page["next"]
            if after is None:
                break
        return found

    def blocks(self, path: str, query: Query) -> Iterator[bytes]:
        """A file as it comes. Raises Lost also when it breaks off before its end."""
        with self._reply("GET", path, query, None) as reply:
            while block := reply.read(BLOCK_BYTES):
                yield block
            if reply.length:
                raise http.client.IncompleteRead(b"", reply.length)

    @contextmanager
    def _reply(
        self, method: str, path: str, query: Query | None, body: Mapping[str, Any] | None
    ) -> Iterator[http.client.HTTPResponse]:
        given = {
            name: str(value).lower() if isinstance(value, bool) else str(value)
            for name, value in (query or {}).items()
            if value is not None
        }
        target = f"{PREFIX}{path}" + (f"?{urlencode(given)}" if given else "")
        headers = {"authorization": f"Bearer {self._place.key}", "accept": "*/*"}
        raw = None
        if body is not None:
            raw = json.dumps(body).encode()
            headers["content-type"] = "application/json"
        connection = _connection(self._place.url)
        try:
            connection.request(method, target, raw, headers)
            reply = connection.getresponse()
            if reply.status >= 300:
                raise _refused(reply.status, reply.read(), self._place)
            yield reply
        except ssl.SSLError as error:
            raise Lost(
                f"{self._place.url} cannot be trusted: {error.reason or error}.",
                "  Is its certificate valid on this machine (SSL_CERT_FILE), and is it https at all?",
            ) from None
        except (OSError, http.client.HTTPException) as error:
            raise _unreached(error, self._place) from None
        finally:
            connection.close()


def in_path(name: str) -> str:
    """A name as a part of a path; names may hold slashes."""
    return quote(name, safe="")


def _connection(url: str) -> http.client.HTTPConnection:
    parts = urlsplit(url)
    if parts.scheme == "https":
        return http.client.HTTPSConnection(
            parts.hostname or "", parts.port, timeout=TIMEOUT_S, context=ssl.create_default_context()
        )
    return http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=TIMEOUT_S)


def _parsed(raw: bytes, place: Place) -> Any:
    try:
        return json.loads(raw)
    except ValueError:
        raise _stranger(place) from None


def _stranger(place: Place) -> Lost:
    return Lost(
        f"what answers at {place.url} is not Pagegate's admin API.",
        "  Name the listener of `admin.port`, not the one that takes calls.",
    )


def _unreached(error: OSError | http.client.HTTPException, place: Place) -> Lost:
    match error:
        case ConnectionRefusedError():
            return Lost(
                f"nothing listens at {place.url}.",
                f"  Start the gateway with `admin.port` set, or name another place with --admin-url or {URL}.",
            )
        case TimeoutError():
            return Lost(f"{place.url} did not answer within {TIMEOUT_S:g} s.", "  Is a firewall in between?")
        case http.client.IncompleteRead() | ConnectionResetError() | BrokenPipeError():
            return Lost(f"{place.url} broke off in the middle of its answer.", "  Its log says why; try again.")
        case http.client.HTTPException():
            return _stranger(place)
        case _:
            return Lost(f"{place.url} cannot be reached: {error.strerror or error}.")


def _refused(status: int, raw: bytes, place: Place) -> Lost:
    try:
        told = json.loads(raw)["error"]
        message, code = str(told["message"]), told.get("code")
    except (ValueError, KeyError, TypeError, AttributeError):
        return _stranger(place)
    match status:
        case 401:
            return Lost(
                f"{place.url} does not know the key from {place.source} as an administrator's.",
                f"  Callers' keys (pg-...) do not administer: give one that does (pga-...) with {KEY} or {KEY_FILE}.",
            )
        case 403:
            return Lost(message, "  Ask an administrator with that role, or use his key.")
        case 404 if code != "not_found":
            return _stranger(place)
        case 409 if code == "managed_by_file":
            return Lost(message, "  The gateway takes the file up when it is started again.")
        case 429 | 503:
            return Lost(message, "  Try again in a moment.")
        case _ if status >= 500:
            return Lost(f"{place.url} failed ({status}): {message}", "  The gateway's log says why.")
        case _:
            return Lost(*message.split("; "))
