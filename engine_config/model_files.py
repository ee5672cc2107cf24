"""What lies in a model's folder: its configuration, its size, and whether the files are the right ones.

Only safetensors go live: formats that can run code when they are read are refused by their names, before
anything opens them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from engine_config.spec import Checksum

SUMS_FILE = "SHA256SUMS"

# Formats that unpickle or execute, and code that trust_remote_code would import.
_UNSAFE_SUFFIXES = frozenset(
    (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib", ".npy", ".h5", ".py", ".pyc", ".so")
)


class BadModel(Exception):
    """A model's files are missing, damaged, or of a kind that is never loaded."""


def config(folder: Path) -> Mapping[str, Any]:
    """The folder's config.json.

    Raises:
        BadModel: There is none, or it is not a JSON object.
    """
    path = folder / "config.json"
    try:
        loaded = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise BadModel(f"{folder} holds no model: config.json is missing") from None
    except ValueError as error:
        raise BadModel(f"{path} is damaged: {error}") from None
    if not isinstance(loaded, dict):
        raise BadModel(f"{path} is damaged: it holds no object")
    return loaded


def weights_bytes(folder: Path) -> int:
    """Size of all weight files."""
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def verify(folder: Path, checksum: Checksum | None) -> None:
    """Refuse a folder that must not be loaded.

    Looked at: the names of all files, config.json, and the checksums of the spec; a SHA256SUMS file in the
    folder is held to as well. Reads every byte of the files that are hashed.

    Raises:
        BadModel: With what is wrong and what to do.
    """
    unsafe = sorted(p.name for p in folder.rglob("*") if p.suffix.lower() in _UNSAFE_SUFFIXES)
    if unsafe:
        raise BadModel(f"{folder} holds files that can run code when read: {', '.join(unsafe)}. Remove them")
    if "auto_map" in config(folder):
        raise BadModel(f"{folder} asks for code of its own (auto_map in config.json), which is never run")
    if not any(folder.glob("*.safetensors")):
        raise BadModel(f"{folder} holds no *.safetensors file. Convert the weights to safetensors")
    if (folder / SUMS_FILE).is_file():
        _compare(folder, _parse_sums((folder / SUMS_FILE).read_text("utf-8")), SUMS_FILE)
    if checksum is None:
        return
    if checksum.files:
        _compare(folder, checksum.files, "the profile")
    if checksum.manifest is not None:
        found = hashlib.sha256(sums(folder).encode()).hexdigest()
        if found != checksum.manifest:
            raise BadModel(
                f"{folder} is not the model that the profile names: its files hash to {found}, "
                f"not to {checksum.manifest}. Fetch it again"
            )


def sums(folder: Path) -> str:
    """The folder's files as `sha256sum` prints them, sorted by name; the SHA256SUMS file itself left out."""
    names = sorted(
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if path.is_file() and path.name != SUMS_FILE and not _is_hidden(path.relative_to(folder))
    )
    digests = _digests(folder, names)
    return "".join(f"{digests[name]}  {name}\n" for name in names)


def _is_hidden(path: Path) -> bool:
    """Download caches keep their notes in hidden folders."""
    return any(part.startswith(".") for part in path.parts)


def _compare(folder: Path, expected: Mapping[str, str], source: str) -> None:
    missing = sorted(name for name in expected if not (folder / name).is_file())
    if missing:
        raise BadModel(f"{folder} is incomplete: {', '.join(missing)} is missing. Fetch the model again")
    found = _digests(folder, list(expected))
    damaged = sorted(name for name, digest in expected.items() if found[name] != digest)
    if damaged:
        raise BadModel(
            f"{folder} is damaged: {', '.join(damaged)} does not have the checksum of {source}. "
            "Remove the folder, and fetch the model again"
        )


def _digests(folder: Path, names: list[str]) -> dict[str, str]:
    # Hashing releases the interpreter's lock; four files at a time keep a fast disk busy.
    with ThreadPoolExecutor(max_workers=4) as pool:
        return dict(zip(names, pool.map(lambda name: _digest(folder / name), names), strict=True))


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _parse_sums(text: str) -> dict[str, str]:
    lines = (line.split(maxsplit=1) for line in text.splitlines() if line.strip())
    return {name.lstrip("*").strip(): digest for digest, name in lines}
