"""Cursors: where a page of a list ended, as a text that means nothing to who hands it back."""

import base64
import binascii
import json
from collections.abc import Sequence
from datetime import datetime

from gateway.errors import BadCall


def cursor(*parts: str) -> str:
    """The place after the row that these parts name."""
    return base64.urlsafe_b64encode(json.dumps(parts, separators=(",", ":")).encode()).decode().rstrip("=")


def place(given: str | None, parts: int) -> Sequence[str] | None:
    """What a cursor of so many parts was made of; None for the beginning. Raises BadCall for any other text."""
    if given is None:
        return None
    try:
        found = json.loads(base64.b64decode(given + "=" * (-len(given) % 4), altchars=b"-_", validate=True))
    except (binascii.Error, ValueError, RecursionError):
        raise _bad() from None
    if not isinstance(found, list) or len(found) != parts or not all(isinstance(part, str) for part in found):
        raise _bad()
    return found


def moment_and_id(given: str | None) -> tuple[datetime, str] | None:
    """The place in a list that is ordered by time. Raises BadCall."""
    found = place(given, 2)
    if found is None:
        return None
    try:
        at = datetime.fromisoformat(found[0])
    except ValueError:
        raise _bad() from None
    if at.tzinfo is None:
        raise _bad()
    return at, found[1]


def _bad() -> BadCall:
    return BadCall("after: is not `next` of a page of this list", "after")
