"""What a child writes: lines, the last of them, the log file; and what the reaper reads."""

from pathlib import Path

import pytest

from engine_config.supervision.reaper import held_at_the_end
from engine_config.supervision.words import Words


def heard(tmp_path: Path, *pieces: bytes) -> list[str]:
    lines: list[str] = []
    with Words(tmp_path / "a.log", lines.append) as words:
        for piece in pieces:
            words.hear(piece)
    return lines


@pytest.mark.parametrize(
    ("pieces", "lines"),
    [
        ([b"one\ntwo\n"], ["one", "two"]),
        ([b"o", b"ne\nt", b"wo", b"\n"], ["one", "two"]),
        ([b"10%\r", b"20%\r\n"], ["10%", "20%"]),
        ([b"\n\n  \nx\n"], ["x"]),
        ([b"torn"], []),
        ([b"caf\xc3\xa9 \xff\n"], ["café �"]),
    ],
)
def test_output_is_cut_into_lines_wherever_it_arrives_cut(
    tmp_path: Path, pieces: list[bytes], lines: list[str]
) -> None:
    assert heard(tmp_path, *pieces) == lines


def test_an_endless_line_is_cut(tmp_path: Path) -> None:
    """A child that writes no line end does not fill our memory."""
    with Words(tmp_path / "a.log", lambda _: None, line_bytes=10) as words:
        for _ in range(100):
            words.hear(b"x" * 1000)
        assert words.last == ("x" * 10,)


def test_the_last_words_are_bounded_and_hold_a_torn_line(tmp_path: Path) -> None:
    with Words(tmp_path / "a.log", lambda _: None, kept_lines=2) as words:
        words.hear(b"1\n2\n3\nand th")
        assert words.last == ("2", "3", "and th")


def test_a_new_life_has_no_last_words_of_the_old_one(tmp_path: Path) -> None:
    with Words(tmp_path / "a.log", lambda _: None) as words:
        words.hear(b"old\nto")
        words.begin()
        words.hear(b"new\n")
        assert words.last == ("new",)
    assert (tmp_path / "a.log").read_bytes() == b"old\ntonew\n"


def test_the_log_is_rotated_by_size(tmp_path: Path) -> None:
    with Words(tmp_path / "a.log", lambda _: None, file_bytes=8) as words:
        for line in (b"first\n", b"second\n", b"third\n"):
            words.hear(line)
    assert (tmp_path / "a.log").read_bytes() == b"third\n"
    assert (tmp_path / "a.log.1").read_bytes() == b"second\n"


def test_a_log_goes_on_where_the_last_run_ended(tmp_path: Path) -> None:
    heard(tmp_path, b"yesterday\n")
    heard(tmp_path, b"today\n")
    assert (tmp_path / "a.log").read_text() == "yesterday\ntoday\n"


def test_a_log_that_cannot_be_written_costs_the_log_and_not_the_child(tmp_path: Path) -> None:
    """/dev/full answers every write as a full disk does."""
    (tmp_path / "a.log").symlink_to("/dev/full")
    lines: list[str] = []
    with Words(tmp_path / "a.log", lines.append) as words:
        words.hear(b"one\n")
        words.hear(b"two\n")
        assert lines == ["one", "two"]
        assert words.last[0].endswith("No space left on device)")


@pytest.mark.parametrize(
    ("lines", "held"),
    [
        ([], set()),
        ([b"+1\n", b"+2\n", b"-1\n"], {2}),
        ([b"+1\n", b"+1\n", b"-1\n"], set()),
        ([b"-7\n", b"+3\n"], {3}),
        ([b"+1\n", b"+2"], {1}),
    ],
)
def test_the_reaper_ends_what_is_held_when_the_supervisor_vanishes(lines: list[bytes], held: set[int]) -> None:
    assert held_at_the_end(lines) == held
