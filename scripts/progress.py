"""Shows the steps of an installation: a line that grows on a terminal, plain lines elsewhere.

Standard library only.
"""

import subprocess
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TextIO

from scripts import trouble

TERMINAL_EVERY_S = 0.2
# In a log, a long step says now and then that it is alive.
LOG_EVERY_S = 15.0
KEPT_LINES = 400
SHOWN_CHARACTERS = 60


class Step:
    """One step under way: runs commands, and keeps their output for the case that they fail."""

    def __init__(self, title: str) -> None:
        self._title = title
        self._lines: deque[str] = deque(maxlen=KEPT_LINES)

    @property
    def latest(self) -> str:
        """What the command said last, shortened; empty when it said nothing."""
        line = next(reversed(list(self._lines)), "")
        return line.strip()[:SHOWN_CHARACTERS]

    def run(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        """Runs to the end; raises `Trouble` with the command's last words when it fails."""
        self._lines.clear()
        child = subprocess.Popen(
            command,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        with child:
            self._lines.extend(child.stdout or ())
        if child.returncode:
            raise trouble.from_output(self._title, self._lines)


class Steps:
    """Numbers the steps, and says of each how long it took."""

    def __init__(self, out: TextIO, total: int) -> None:
        self._out = out
        self._total = total
        self._number = 0
        self._live = out.isatty()

    @contextmanager
    def step(self, title: str) -> Iterator[Step]:
        """One step: announced, shown while it runs, and closed with how it went."""
        self._number += 1
        head = f"[{self._number}/{self._total}] {title}"
        began = time.monotonic()
        step, over = Step(title), threading.Event()
        shown = threading.Thread(target=self._show, args=(head, step, began, over), daemon=True)
        self._say(f"{head} ...", ended=not self._live)
        shown.start()
        verdict = "failed"
        try:
            yield step
            verdict = "done"
        finally:
            over.set()
            shown.join()
            self._say(f"{head}: {verdict}, {time.monotonic() - began:.1f} s", ended=True)

    def say(self, what: str) -> None:
        """One line after the steps."""
        self._say(what, ended=True)

    def _show(self, head: str, step: Step, began: float, over: threading.Event) -> None:
        while not over.wait(TERMINAL_EVERY_S if self._live else LOG_EVERY_S):
            self._say(f"{head} ... {time.monotonic() - began:.0f} s  {step.latest}", ended=not self._live)

    def _say(self, text: str, *, ended: bool) -> None:
        erase = "\r\033[K" if self._live else ""
        self._out.write(erase + text + ("\n" if ended else ""))
        self._out.flush()
