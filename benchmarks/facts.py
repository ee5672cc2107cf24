"""What has to be known beside the figures: the machine, the versions, the command."""

import os
import platform
import re
import shlex
import subprocess
from collections.abc import Iterable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

from benchmarks.cores import CorePlan
from benchmarks.gateways import INSTALLED, ROOT, Entry, find_nginx

_PACKAGES = ("pagegate", "uvloop", "httptools", "orjson")


def facts(words: Sequence[str], entries: Iterable[Entry], cores: CorePlan) -> dict[str, str]:
    """In the order in which they are shown; paths and the machine's name are left out."""
    versions = [f"{name} {_version(name)}" for name in _PACKAGES]
    apart = "" if cores.apart else " (one core for everything: figures are of little use)"
    found = {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "command": command(words),
        "processor": f"{_processor()}, {os.cpu_count()} cores",
        "memory": f"{_memory_gib():.0f} GiB",
        "system": f"{_distribution()}, Linux {platform.release().partition('-')[0]}",
        "Python": platform.python_version(),
        "versions": ", ".join(versions),
        "commit": _commit(),
        "cores": f"{cores}{apart}",
    }
    others = [other for entry in entries if (other := _other(entry))]
    return found | ({"others": ", ".join(others)} if others else {})


def command(words: Sequence[str]) -> str:
    """What somebody else types to get the same."""
    return f'make bench ARGS="{shlex.join(words)}"' if words else "make bench"


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "from the checkout"


def _processor() -> str:
    with suppress(OSError):
        found = re.search(r"^(?:model name|Model)\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        if found:
            return found[1].strip()
    return platform.machine()


def _memory_gib() -> float:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30


def _distribution() -> str:
    with suppress(OSError):
        return platform.freedesktop_os_release().get("PRETTY_NAME", "Linux")
    return "Linux"


def _commit() -> str:
    """Of the checkout; with a word where it was changed since."""
    with suppress(OSError, subprocess.CalledProcessError):
        revision = _git("rev-parse", "--short", "HEAD")
        return f"{revision}, changed since" if _git("status", "--porcelain", "--", "gateway") else revision
    return "unknown"


def _git(*words: str) -> str:
    done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def _other(entry: Entry) -> str | None:
    """Name and version of another gateway, where it can be told."""
    if entry.name == "nginx" and (path := find_nginx()):
        with suppress(OSError):
            said = subprocess.run([path, "-v"], capture_output=True, text=True, check=False).stderr
            return said.strip().removeprefix("nginx version: ")
    for folder in (INSTALLED / entry.name).glob("lib/python*/site-packages"):
        for package in entry.packages:
            name = re.split(r"[\[=<>]", package)[0]
            for distribution in metadata.distributions(path=[str(folder)], name=name):
                return f"{name} {distribution.version}"
    return None
