"""Regenerates `locks/*.txt` with the uv of `.venv`; run as `make lock`.

Pins that still fit are kept; `--upgrade` takes the newest of everything. What is left out of a resolution
and why stands in `locks/excludes*.txt`.
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from scripts import pip_settings

ROOT = Path(__file__).resolve().parent.parent
LOCKS = ROOT / "locks"
TORCH = "2.13.0"

PARTIAL = frozenset({"find-links", "extra-index-url"})

# Said by uv of nearly every pin. Without it the files read better, and a machine that is not supported is
# told so by its installer, where uv would quietly install nothing.
LINUX = "platform_python_implementation == 'CPython' and sys_platform == 'linux'"
EVERYWHERE = (
    " ; python_full_version < '3.15' and ("
    f"(platform_machine == 'aarch64' and {LINUX}) or (platform_machine == 'x86_64' and {LINUX}))"
)

CPU_TORCH = f"""\
# No hash: PyTorch publishes this build on its own index, one file for each Python and processor, and a
# machine that locks rarely sees them all. uv checks every hash above and takes this line as it is.
torch=={TORCH}+cpu
"""


@dataclass(frozen=True)
class Lock:
    """One file of pins: which parts of pyproject.toml it resolves, and which locks it must agree with."""

    name: str
    options: tuple[str, ...]
    agrees_with: str | None = None
    excludes: tuple[str, ...] = ("excludes.txt",)
    torch_cpu: bool = False


CPU = ("pyproject.toml", "--extra", "cpu", "--group", "cpu-needs")
CPU_EXCLUDES = ("excludes.txt", "excludes-cpu.txt")
# In this order: a lock agrees with one that was made before it, so that what is tested is what is served.
ALL = (
    Lock("dev", (*CPU, "--group", "dev"), excludes=CPU_EXCLUDES, torch_cpu=True),
    Lock("cpu", CPU, agrees_with="dev", excludes=CPU_EXCLUDES, torch_cpu=True),
    Lock("gateway", ("pyproject.toml",), agrees_with="dev"),
    Lock("gpu", ("pyproject.toml", "--extra", "gpu"), agrees_with="gateway"),
    Lock("build", ("--group", "build")),
    Lock("bootstrap", ("--group", "bootstrap")),
)


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="make lock", description=__doc__)
    parser.add_argument("--upgrade", action="store_true", help="take the newest versions that fit")
    chosen = parser.parse_args(arguments)
    environment = dict(os.environ)
    # Not from places that hold a few files only: a lock needs the hash of every file of a version.
    options = {k: v for k, v in pip_settings.of(sys.executable).items() if k not in PARTIAL}
    environment |= pip_settings.for_uv(options, environment)
    for lock in ALL:
        print(f"locks/{lock.name}.txt", flush=True)
        made = subprocess.run(command(lock, upgrade=chosen.upgrade), cwd=ROOT, env=environment, check=False)
        if made.returncode:
            return made.returncode
        finish(lock)
    return 0


def command(lock: Lock, *, upgrade: bool) -> list[str]:
    """The uv command line that resolves `lock` for every Python and processor that is supported."""
    excludes = [part for name in lock.excludes for part in ("--excludes", f"locks/{name}")]
    constraints = ["--constraints", f"locks/{lock.agrees_with}.txt"] if lock.agrees_with else []
    return [
        *(str(Path(sys.executable).with_name("uv")), "pip", "compile", "--quiet", *lock.options),
        *("--universal", "--python-version", "3.11", "--generate-hashes"),
        *("--custom-compile-command", "make lock", "--output-file", f"locks/{lock.name}.txt"),
        *excludes,
        *constraints,
        *(["--upgrade"] if upgrade else []),
    ]


def finish(lock: Lock) -> None:
    """Pins torch to the build that the engine was made for, and drops the marker that says "everywhere"."""
    path = LOCKS / f"{lock.name}.txt"
    text = path.read_text().replace(f"{EVERYWHERE} \\\n", " \\\n")
    if lock.torch_cpu:
        text += CPU_TORCH
    # `==2.13.0` also admits `2.13.0+cpu`, which a machine may offer through find-links; `===` does not.
    text = text.replace(f"\ntorch=={TORCH} ", f"\ntorch==={TORCH} ")
    path.write_text(text)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
