"""The folder that `pagegate up` keeps between runs: keys, models, logs, and what one run's processes read.

Owns the layout, who may read it (its owner alone), and the lock that keeps a second `up` out. What is in the
files is the business of those who write them.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


class StateInUse(Exception):
    """Another `pagegate up` runs on the folder; `holder` is its process id, empty where it left none."""

    def __init__(self, folder: Path, holder: str) -> None:
        super().__init__(f"{folder} is in use by another pagegate up" + (f" (pid {holder})" if holder else ""))
        self.folder = folder
        self.holder = holder


@dataclass(frozen=True, slots=True)
class StateFolder:
    """The paths in the folder; all are absolute."""

    path: Path

    @property
    def bootstrap_key(self) -> Path:
        """The key that is printed, where the environment gives none."""
        return self.path / "bootstrap-key"

    @property
    def admin_key(self) -> Path:
        """The administrator's key that the commands on this machine use."""
        return self.path / "admin-key"

    @property
    def admin(self) -> Path:
        """Where the admin API of the run is and the key to it, for those commands."""
        return self.path / "admin.json"

    @property
    def database(self) -> Path:
        """Keys, tenants, usage and audit, where the settings name no other database."""
        return self.path / "pagegate.db"

    @property
    def secret(self) -> Path:
        """The secret under which keys are hashed, where the settings name none."""
        return self.path / "secret"

    @property
    def models(self) -> Path:
        return self.path / "models"

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    @property
    def settings(self) -> Path:
        """The settings that the gateway of this run is started with."""
        return self.path / "run" / "gateway.yaml"

    def write(self, path: Path, text: str) -> None:
        """Replaces a file by one that only its owner may read: whole, or not at all."""
        draft = path.with_name(f"{path.name}.new")
        with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)


@contextmanager
def opened(path: Path) -> Iterator[StateFolder]:
    """The folder, made if missing, and nobody else's while the block runs. Raises StateInUse, OSError."""
    folder = StateFolder(path.absolute())
    for made in (folder.path, folder.models, folder.logs, folder.settings.parent):
        made.mkdir(mode=0o700, parents=True, exist_ok=True)
    with open(os.open(folder.path / "lock", os.O_RDWR | os.O_CREAT, 0o600), "r+", encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StateInUse(folder.path, lock.read().strip()) from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield folder
