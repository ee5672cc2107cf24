"""An engine's answer that is held back: its silence counts only while it is we who wait."""

from typing import cast

from gateway.deadlines import Deadlines
from gateway.fleet.replica import Replica
from gateway.http1 import Address, Connection, Connections
from gateway.upstream.engines import HttpAnswer
from tests.unit.by_hand import HandLoop

GAP_S = 5.0


class QuietEngine:
    """A connection on which nothing comes; remembers how it was held back, and when it expired."""

    def __init__(self, loop: HandLoop) -> None:
        self._loop = loop
        self.held_back = False
        self.expired_at_s: float | None = None

    async def pour(self, sink: object) -> None:
        await self._loop.create_future()

    def pause(self) -> None:
        self.held_back = True

    def resume(self) -> None:
        self.held_back = False

    def expire(self) -> None:
        self.expired_at_s = self._loop.now_s


class Pool:
    """Takes connections back."""

    def release(self, connection: object, address: Address) -> None:
        return


def answers(loop: HandLoop) -> tuple[HttpAnswer, QuietEngine]:
    engine = QuietEngine(loop)
    answer = HttpAnswer(
        Replica("a", "tiny", Address("engine", 1)),
        cast(Connection, engine),
        cast(Connections, Pool()),
        cast("Deadlines[Connection]", Deadlines(GAP_S, QuietEngine.expire)),
        b"",
        {},
    )
    return answer, engine


def test_an_engine_that_we_hold_back_may_be_silent() -> None:
    """Its time goes on when we do, from the beginning."""
    loop = HandLoop()
    with loop.running():
        answer, engine = answers(loop)
        pouring = loop.create_task(answer.pour(lambda data: True))
        loop.turn()
        with loop.running():
            answer.pause()
        loop.pass_time(3 * GAP_S)
        assert engine.held_back
        assert engine.expired_at_s is None
        with loop.running():
            answer.resume()
        assert not engine.held_back
        loop.pass_time(2 * GAP_S)
        assert engine.expired_at_s == 1000.0 + 4 * GAP_S
        pouring.cancel()
        loop.turn()


def test_an_engine_that_was_held_back_from_the_first_byte_on_may_be_silent_too() -> None:
    """The caller was full before the rest was asked for."""
    loop = HandLoop()
    with loop.running():
        answer, engine = answers(loop)
        answer.pause()
        pouring = loop.create_task(answer.pour(lambda data: True))
        loop.turn()
        loop.pass_time(3 * GAP_S)
        assert engine.expired_at_s is None
        pouring.cancel()
        loop.turn()


def test_a_connection_that_was_given_back_is_not_ours_to_time() -> None:
    """The caller takes up the last of a reply long after the engine was done: the next call is on that connection."""
    loop = HandLoop()
    with loop.running():
        answer, engine = answers(loop)
        pouring = loop.create_task(answer.pour(lambda data: True))
        loop.turn()
        with loop.running():
            answer.pause()
        pouring.cancel()
        loop.turn()
        engine.held_back = False
        answer.close()
        with loop.running():
            answer.resume()
        loop.pass_time(3 * GAP_S)
        assert engine.expired_at_s is None
