"""Installs other gateways, each into a virtual environment of its own, only when it is asked for."""

import subprocess
import sys
import venv
from collections.abc import Callable

from benchmarks.gateways import INSTALLED, Entry
from benchmarks.processes import Trouble

LINES_SHOWN = 12


def install(entry: Entry, say: Callable[[str], None]) -> None:
    """Makes the environment, or completes it. Raises Trouble with pip's last words."""
    if not entry.packages:
        raise Trouble(f"{entry.name} needs no installation")
    folder = INSTALLED / entry.name
    say(f"installing {' '.join(entry.packages)} into {folder.relative_to(INSTALLED.parents[1])}")
    venv.create(folder, with_pip=True, clear=False, symlinks=True)
    command = [str(folder / "bin" / "python"), "-m", "pip", "install", "--disable-pip-version-check", "--quiet"]
    done = subprocess.run([*command, *entry.packages], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
    if done.returncode:
        lines = done.stdout.decode(errors="replace").splitlines()[-LINES_SHOWN:]
        raise Trouble("\n    ".join([f"{entry.name} could not be installed:", *lines]))
    missing = entry.missing()
    if missing is not None:
        raise Trouble(f"{entry.name} was installed, but its command is not there ({sys.platform})")
