"""Says in uv's variables what a machine's pip settings say: which indexes, proxies and certificates to use.

Reads pip's own merged view (`pip config list`: files and `PIP_*` variables) and translates it. What somebody
has already set for uv wins. Standard library only.
"""

import ast
import subprocess
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

# pip reads its sections in this order; the last that names an option wins.
SECTIONS = ("global", "install", ":env:")


def of(python: str) -> dict[str, str]:
    """The options that pip under `python` would install with, by name; empty when pip cannot tell."""
    listed = subprocess.run([python, "-m", "pip", "config", "list"], capture_output=True, text=True, check=False)
    return merged(listed.stdout.splitlines())


def merged(lines: Iterable[str]) -> dict[str, str]:
    """`section.option='value'` lines as one mapping of option to value."""
    found: dict[tuple[int, str], str] = {}
    for line in lines:
        name, _, value = line.partition("=")
        section, _, option = name.rpartition(".")
        if section in SECTIONS and value:
            found[SECTIONS.index(section), option] = str(ast.literal_eval(value))
    return {option: value for (_, option), value in sorted(found.items())}


def for_uv(
    options: Mapping[str, str],
    environment: Mapping[str, str],
    exists: Callable[[str], bool] = lambda place: Path(place).exists(),
) -> dict[str, str]:
    """The variables to add to `environment` so that uv installs from where pip would.

    `exists` tells whether a folder is there: pip passes over a missing one, uv stops at it.
    """
    said: dict[str, str] = {}
    places = [place for place in options.get("find-links", "").split() if "://" in place or exists(place)]
    if places:
        said["UV_FIND_LINKS"] = ",".join(places)
    if index := options.get("index-url"):
        said["UV_DEFAULT_INDEX"] = index
    if extra := options.get("extra-index-url", "").split():
        said["UV_INDEX"] = " ".join(extra)
        # pip looks through all its indexes for the best version. uv stops at the first that knows a name,
        # which is wrong for an index that holds a few versions only. The locks' hashes keep this safe.
        said["UV_INDEX_STRATEGY"] = "unsafe-best-match"
    if is_on(options.get("no-index", "")):
        said["UV_NO_INDEX"] = "1"
    if cert := options.get("cert"):
        said["SSL_CERT_FILE"] = cert
    if client := options.get("client-cert"):
        said["SSL_CLIENT_CERT"] = client
    if hosts := options.get("trusted-host", "").split():
        said["UV_INSECURE_HOST"] = " ".join(hosts)
    if proxy := options.get("proxy"):
        said |= {"HTTP_PROXY": proxy, "HTTPS_PROXY": proxy}
    if timeout := options.get("timeout", options.get("default-timeout")):
        said["UV_HTTP_TIMEOUT"] = str(max(1, round(float(timeout))))
    return {name: value for name, value in said.items() if not environment.get(name)}


def is_on(value: str) -> bool:
    return value.strip().lower() in {"1", "true", "yes", "on"}
