"""What can go wrong while setting up, as one message and its remedy; reads the installers' own last words.

Standard library only.
"""

import re
from collections.abc import Iterable

LAST_LINES = 8
LONGEST_LINE = 200


class Trouble(Exception):
    """Set-up cannot go on: `what` happened, and the `remedy`. `details` are a tool's own last lines."""

    def __init__(self, what: str, remedy: str, details: Iterable[str] = ()) -> None:
        super().__init__(what)
        self.what = what
        self.remedy = remedy
        self.details = tuple(details)

    def __str__(self) -> str:
        details = "".join(f"\n    {line}" for line in self.details)
        return f"{self.what}{details}\nremedy: {self.remedy}"


# The first that matches names the cause: a disk that is full also breaks connections, and a connection that
# is refused also leaves a resolver without versions.
CAUSES: tuple[tuple[str, str, str], ...] = (
    (
        r"no space left on device|os error 28|disk quota exceeded",
        "the disk is full",
        "free some space (du -sh .venv ~/.cache/uv), then run the same command again",
    ),
    (
        r"certificate|UnknownIssuer",
        "the package registry's certificate is not trusted",
        "point SSL_CERT_FILE (or pip's `cert` setting) at your network's certificate bundle",
    ),
    (
        r"(status|http|error)[^\n]*\b(401|403|407)\b|unauthorized|forbidden",
        "the package registry refused the request",
        "check the index, the proxy and their credentials in `pip config list`",
    ),
    (
        r"hash mismatch|do not match the hashes",
        "the package registry served a file that is not the one that was locked",
        "use a registry that mirrors PyPI unchanged; `pip config list` shows which is set",
    ),
    (
        r"dns error|error sending request|failed to (connect|fetch|establish)|could not connect|timed? ?out"
        r"|network is unreachable|name resolution|connection (refused|reset)|max retries",
        "the package registry cannot be reached",
        "check the network; a mirror or proxy is taken from pip's `index-url` and `proxy` settings",
    ),
    (
        r"no solution found|no matching distribution|could not find a version"
        r"|not found in the package registry",
        "the package registry lacks a version that is locked",
        "use a registry that mirrors PyPI completely; `pip config list` shows which is set",
    ),
)


def from_output(step: str, lines: Iterable[str]) -> Trouble:
    """The trouble that an installer's output tells of; words that are not known are shown as they are."""
    said = [line.rstrip()[:LONGEST_LINE] for line in lines if line.strip()]
    text = "\n".join(said)
    for pattern, what, remedy in CAUSES:
        if re.search(pattern, text, re.IGNORECASE):
            return Trouble(f"{step}: {what}", remedy, said[-LAST_LINES:])
    return Trouble(f"{step} failed", "mend what the installer says above, and run again", said[-LAST_LINES:])
