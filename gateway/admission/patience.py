"""How fast turns are given, and how long a call would wait at that pace: arithmetic on (state, now)."""

import math

# What is remembered: so many seconds of waiting, or so many turns where those take longer.
WINDOW_S = 10.0
WINDOW_TURNS = 32
# How fast it fades while nobody waits: engines may come and go meanwhile.
FADING_S = 600.0
# With less behind it nothing is said.
LEAST_TURNS = 4.0


class Pace:
    """The rate of turns in tokens, counted only while calls wait: only then it shows what engines can take.

    Weights fall exponentially with age. A long time without a turn counts at once, so a stalled engine is noticed.
    """

    __slots__ = ("_at_s", "_rested_s", "_seconds", "_tokens", "_turns")

    def __init__(self) -> None:
        self._tokens = self._turns = self._seconds = 0.0
        self._at_s: float | None = None
        self._rested_s: float | None = None

    def resume(self, now_s: float) -> None:
        """Calls wait from now on."""
        if self._rested_s is not None:
            self._fade(math.exp(-max(0.0, now_s - self._rested_s) / FADING_S))
        self._at_s, self._rested_s = now_s, None

    def pause(self, now_s: float) -> None:
        """Nobody waits any more."""
        self._seconds += self._open_s(now_s)
        self._at_s, self._rested_s = None, now_s

    def turn(self, tokens: float, now_s: float) -> None:
        """A turn was given to a call of so many tokens, that had waited."""
        passed_s = self._open_s(now_s)
        usual_s = self._seconds / self._turns if self._turns else 0.0
        self._fade(math.exp(-passed_s / max(WINDOW_S, WINDOW_TURNS * usual_s)))
        self._tokens += tokens
        self._turns += 1
        self._seconds += passed_s
        self._at_s = now_s

    def wait_s(self, tokens: float, now_s: float) -> float | None:
        """How long until a call has its turn that so many tokens go before; None while too little is known.

        The last of it is the time between two turns: the next one may just be over.
        """
        seconds = self._seconds + self._open_s(now_s)
        if self._turns < LEAST_TURNS or not self._tokens:
            return None
        return (tokens + self._tokens / self._turns) * seconds / self._tokens

    def takes_s(self, tokens: float, now_s: float) -> float:
        """How long turns for so many tokens take; 0 while too little is known."""
        if self._turns < LEAST_TURNS or not self._tokens:
            return 0.0
        return tokens * (self._seconds + self._open_s(now_s)) / self._tokens

    def _open_s(self, now_s: float) -> float:
        return max(0.0, now_s - self._at_s) if self._at_s is not None else 0.0

    def _fade(self, keep: float) -> None:
        self._tokens *= keep
        self._turns *= keep
        self._seconds *= keep

    def __repr__(self) -> str:
        rate = f"{self._tokens / self._seconds:.0f} tokens a second" if self._seconds else "unknown"
        return f"<Pace {rate}>"
