"""What a child writes: cut into lines, the last of them kept, all of it appended to a log file.

Owns the file and its size: it is rotated. What the lines mean is read by `progress` and `diagnosis`.
"""

import re
from collections import deque
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

_LINE_END = re.compile(rb"[\r\n]+")


class Words:
    """The output of one child over all its lives. A context manager: the file is open inside.

    Args:
        path: The log file; `path.1` is the one before.
        on_line: Called with each complete line. Progress bars end a line by a carriage return.
        file_bytes: Size at which the file is rotated.
        kept_lines: How many last lines are kept; a dying vLLM prints some 200 after its root cause.
        line_bytes: Longer lines are cut.
    """

    def __init__(
        self,
        path: Path,
        on_line: Callable[[str], None],
        *,
        file_bytes: int = 16 * 2**20,
        kept_lines: int = 500,
        line_bytes: int = 4096,
    ) -> None:
        self._path = path
        self._on_line = on_line
        self._file_bytes = file_bytes
        self._line_bytes = line_bytes
        self._last: deque[str] = deque(maxlen=kept_lines)
        self._torn = b""
        self._file: BinaryIO | None = None
        self._size = 0

    def __enter__(self) -> Self:
        self._open()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    @property
    def last(self) -> tuple[str, ...]:
        """The last lines, oldest first, with what stands after the last line's end."""
        torn = self._text(self._torn)
        return (*self._last, torn) if torn else tuple(self._last)

    def begin(self) -> None:
        """A new life begins: what was said in the last one is in the file only."""
        self._last.clear()
        self._torn = b""

    def hear(self, data: bytes) -> None:
        """Takes what the child wrote, cut anywhere."""
        self._append(data)
        *lines, self._torn = _LINE_END.split(self._torn + data)
        self._torn = self._torn[: self._line_bytes]
        for line in lines:
            if text := self._text(line):
                self._last.append(text)
                self._on_line(text)

    def _text(self, line: bytes) -> str:
        return line[: self._line_bytes].decode("utf-8", "replace").rstrip()

    def _append(self, data: bytes) -> None:
        if self._file is None:
            return
        try:
            if self._size + len(data) > self._file_bytes:
                self._file.close()
                self._path.replace(f"{self._path}.1")
                self._open()
            self._file.write(data)
            self._size += len(data)
        except OSError as error:
            # A full disk must not end a worker that serves: go on without the file.
            self._file.close()
            self._file = None
            self._last.append(f"(no more is written to {self._path}: {error.strerror})")

    def _open(self) -> None:
        self._file = self._path.open("ab", buffering=0)
        self._size = self._file.tell()
