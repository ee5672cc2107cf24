"""Where the admin API is and with which key: from options, the environment, or the folder of `pagegate up`.

A key of the folder is only ever sent to the address in the folder, and no key at all unencrypted beyond this machine.
"""

import json
from collections.abc import Mapping
from ipaddress import ip_address
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

URL, KEY, KEY_FILE, STATE = "PAGEGATE_ADMIN_URL", "PAGEGATE_ADMIN_KEY", "PAGEGATE_ADMIN_KEY_FILE", "PAGEGATE_STATE"
DEFAULT_STATE = ".pagegate"
LONGEST_KEY_FILE = 64 * 1024


class Lost(Exception):
    """A command cannot do what it was asked to. `lines` say why, and what helps."""

    def __init__(self, *lines: str) -> None:
        super().__init__(" ".join(lines))
        self.lines = lines


class Place(NamedTuple):
    """An admin API. `source` is where its key is from, in words."""

    url: str
    key: str
    source: str


class Options(NamedTuple):
    """What a command line says of the place."""

    url: str | None = None
    key_file: Path | None = None
    state: Path | None = None
    insecure: bool = False


def find(options: Options, environ: Mapping[str, str]) -> Place:
    """The place. Raises Lost."""
    state = options.state or Path(environ.get(STATE) or DEFAULT_STATE)
    url = options.url or environ.get(URL)
    known = _in_folder(state / "admin.json")
    key, source = _key(options, environ)
    if key is None and known is not None and url in (None, known.url):
        return known
    if url is None and known is not None:
        url = known.url
    if url is None:
        raise Lost(
            "where is the admin API?",
            f"  Say it with --admin-url or {URL}, or run this where `pagegate up` was started: there is no "
            f"{state / 'admin.json'}.",
        )
    if key is None:
        raise Lost(
            f"there is no key for {url}.",
            f"  Give an administrator's key (pga-...) with {KEY}, --admin-key-file or {KEY_FILE}.",
        )
    _check(url, insecure=options.insecure)
    return Place(url.rstrip("/"), key, source)


def _key(options: Options, environ: Mapping[str, str]) -> tuple[str | None, str]:
    file, source = options.key_file, "--admin-key-file"
    if file is None and environ.get(KEY):
        return _sendable(environ[KEY].strip(), KEY), KEY
    if file is None and environ.get(KEY_FILE):
        file, source = Path(environ[KEY_FILE]), KEY_FILE
    if file is None:
        return None, ""
    try:
        with file.open(encoding="utf-8") as opened:
            key = opened.read(LONGEST_KEY_FILE).strip()
    except (OSError, UnicodeDecodeError) as error:
        raise Lost(f"{file}: cannot be read: {getattr(error, 'strerror', None) or error} ({source}).") from None
    return _sendable(key, str(file)), str(file)


def _sendable(key: str, source: str) -> str:
    if not key or not key.isascii() or not key.isprintable() or " " in key:
        raise Lost(f"{source} holds no key: it must be one word of printable ASCII characters.")
    return key


def _in_folder(file: Path) -> Place | None:
    """What `pagegate up` wrote, if it did."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        place = Place(found["url"].rstrip("/"), _sendable(found["key"], str(file)), str(file))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise Lost(
            f"{file}: is not what `pagegate up` writes: {error}.", "  Remove it, or name another place."
        ) from None
    _check(place.url, insecure=False)
    return place


def _check(url: str, *, insecure: bool) -> None:
    """Raises Lost for a URL that a key must not be sent to."""
    parts = urlsplit(url)
    try:
        good = parts.scheme in ("http", "https") and parts.hostname and (parts.port is None or parts.port > 0)
    except ValueError:
        good = False
    if not good or parts.username is not None or parts.query or parts.fragment or parts.path not in ("", "/"):
        raise Lost(f"{url!r} is no address of an admin API: write http://HOST:PORT or https://HOST:PORT.")
    if parts.scheme == "http" and not insecure and not _is_here(parts.hostname or ""):
        raise Lost(
            f"the key would travel unencrypted to {parts.hostname}.",
            "  Use https:// (a proxy that ends TLS, or a tunnel), or say --insecure where the network is trusted.",
        )


def _is_here(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
