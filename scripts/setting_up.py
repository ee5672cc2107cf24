"""Makes `.venv` equal to a lock: the environment, uv inside it, the pinned packages, the project itself.

Quick when nothing changed: a stamp in the environment says what is in it. An installation that was cut off
leaves no stamp, and the next one makes it good. Standard library only.
"""

import argparse
import fcntl
import hashlib
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from scripts import machine, pip_settings
from scripts.progress import Step, Steps
from scripts.trouble import Trouble

ROOT = Path(__file__).resolve().parent.parent
# Which locks an environment made from one also fulfils: the pins of the larger contain the smaller's.
FULFILS = {
    "gateway": ("gateway",),
    "cpu": ("cpu", "gateway"),
    "gpu": ("gpu", "gateway"),
    "dev": ("dev", "cpu", "gateway"),
}


@dataclass(frozen=True)
class Checkout:
    """The places of one checkout that set-up reads and writes."""

    root: Path

    @property
    def venv(self) -> Path:
        return self.root / ".venv"

    @property
    def python(self) -> Path:
        return self.venv / "bin" / "python"

    @property
    def uv(self) -> Path:
        return self.venv / "bin" / "uv"

    @property
    def stamp(self) -> Path:
        return self.venv / "pagegate-installed.json"

    def lock(self, name: str) -> Path:
        return self.root / "locks" / f"{name}.txt"

    def wanted(self, lock: str) -> dict[str, str]:
        """What the stamp says once `lock` is installed: all that went in, by name."""
        return {name: _digest(self.lock(name)) for name in FULFILS[lock]} | {
            "project": _digest(self.root / "pyproject.toml"),
            "python": "{}.{}.{}".format(*sys.version_info),
            # Scripts in an environment name its place: a checkout that was moved needs a new one.
            "root": str(self.root),
        }

    def installed(self) -> dict[str, str]:
        """What the stamp says; empty when there is none, or when the interpreter it was made with is gone."""
        if not self.stamp.exists() or not self.python.exists():
            return {}
        said: dict[str, str] = json.loads(self.stamp.read_text())
        return said

    def write_stamp(self, wanted: Mapping[str, str]) -> None:
        """Says that everything wanted is in the environment; never half written."""
        partial = self.stamp.with_suffix(".partial")
        partial.write_text(json.dumps(wanted, indent=1))
        partial.replace(self.stamp)


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def main(arguments: Sequence[str]) -> int:
    """Install what the words name; returns the exit status."""
    parser = argparse.ArgumentParser(prog="install", description=__doc__)
    parser.add_argument("lock", nargs="?", choices=[*FULFILS, "auto"], default="auto", help="auto: cpu or gpu")
    lock = parser.parse_args(arguments).lock
    try:
        install(Checkout(ROOT), lock)
    except Trouble as problem:
        print(f"install: {problem}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("install: stopped; the same command goes on from here", file=sys.stderr)
        return 130
    return 0


def install(checkout: Checkout, lock: str) -> None:
    """Brings the environment up to `lock` (`auto`: the engine for this machine); raises `Trouble`."""
    here = machine.here(checkout.root)
    if lock == "auto":
        lock = machine.engine_for(here)
    machine.check(here, lock)
    with alone(checkout.root):
        installed, wanted = checkout.installed(), checkout.wanted(lock)
        if is_current(installed, wanted):
            return
        machine.check_room(here, lock)
        checkout.stamp.unlink(missing_ok=True)
        steps = Steps(sys.stderr, total=4)
        make_environment(checkout, steps, fresh=is_foreign(installed, wanted))
        environment = dict(os.environ)
        environment |= pip_settings.for_uv(pip_settings.of(str(checkout.python)), environment)
        sync(checkout, lock, environment, steps)
        install_project(checkout, environment, steps)
        checkout.write_stamp(wanted)
        steps.say(f"installed in {checkout.venv.name}: pagegate and locks/{lock}.txt")


def is_current(installed: Mapping[str, str], wanted: Mapping[str, str]) -> bool:
    """Whether everything wanted is in the environment; more may be."""
    return all(installed.get(name) == value for name, value in wanted.items())


def is_foreign(installed: Mapping[str, str], wanted: Mapping[str, str]) -> bool:
    """Whether the environment is of another interpreter or place, or of unknown origin."""
    return any(installed.get(name) != wanted[name] for name in ("python", "root"))


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """One installation at a time in a checkout; a second one waits for the first."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("waiting for another installation in this checkout", file=sys.stderr)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def make_environment(checkout: Checkout, steps: Steps, *, fresh: bool) -> None:
    """An environment of the running interpreter, with the pinned uv in it."""
    with steps.step("virtual environment, Python {}.{}".format(*sys.version_info)) as step:
        if fresh or not checkout.python.exists():
            step.run([sys.executable, "-m", "venv", "--clear", str(checkout.venv)], os.environ)
    with steps.step("uv") as step:
        pip = [str(checkout.python), "-m", "pip", "install", "--no-user", "--no-deps", "--require-hashes"]
        step.run([*pip, "-r", str(checkout.lock("bootstrap"))], os.environ)


def sync(checkout: Checkout, lock: str, environment: Mapping[str, str], steps: Steps) -> None:
    """Makes the environment's packages exactly those of the lock, each held to its hash."""
    path = checkout.lock(lock)
    command = [str(checkout.uv), "pip", "sync", "--no-progress", "--python", str(checkout.python), str(path)]
    with steps.step(f"packages of locks/{path.name}") as step:
        if not leaves_torch_unhashed(path.read_text()):
            step.run([*command, "--require-hashes"], environment)
            return
        try:
            step.run(command, environment)
        except Trouble as problem:
            if not lacks_torch(problem):
                raise
            sync_with_pytorchs_index(step, command, environment)


def sync_with_pytorchs_index(step: Step, command: Sequence[str], environment: Mapping[str, str]) -> None:
    """The same where nothing offers torch's CPU build: uv knows where PyTorch itself publishes it."""
    try:
        step.run([*command, "--torch-backend", "cpu"], environment)
    except Trouble as problem:
        python = "{}.{}".format(*sys.version_info)
        raise Trouble(
            f"nothing here offers torch's CPU build for Python {python}, and then: {problem.what}",
            "let this machine reach PyTorch's own index, or offer the wheel through pip's `find-links`;"
            " or name another Python, for which it is offered: make PYTHON=python3.11 ...",
            problem.details,
        ) from problem


def leaves_torch_unhashed(lock: str) -> bool:
    """Whether a lock pins torch without a hash, as those with the CPU engine do (`lock` says why)."""
    return any(line.startswith("torch==") and "+cpu" in line for line in lock.splitlines())


def lacks_torch(problem: Trouble) -> bool:
    """Whether uv failed because nothing offers the build of torch that is pinned."""
    return any("torch" in line and ("no version of" in line or "has no wheels" in line) for line in problem.details)


def install_project(checkout: Checkout, environment: Mapping[str, str], steps: Steps) -> None:
    """The project itself, editable: a change of its code needs no new installation."""
    with steps.step("pagegate") as step:
        step.run(
            [
                *(str(checkout.uv), "pip", "install", "--no-progress", "--python", str(checkout.python)),
                *("--no-deps", "--build-constraints", str(checkout.lock("build"))),
                *("--editable", str(checkout.root)),
            ],
            environment,
        )
