"""How the calls on one replica share its time: at every moment each of n calls takes an nth of it.

Processor sharing, as one integral: a call's share is by how much it grew while the call ran.
"""


class Sharing:
    """`enter` and `leave` bracket a call; times are monotonic seconds."""

    __slots__ = ("_at_s", "_integral_s", "calls")

    def __init__(self) -> None:
        self.calls = 0
        self._at_s = 0.0
        self._integral_s = 0.0

    def enter(self, now_s: float) -> float:
        """One more call; what `leave` wants to be given."""
        self._grow(now_s)
        self.calls += 1
        return self._integral_s

    def leave(self, entered: float, now_s: float) -> float:
        """One call less: the seconds of the replica that were its share."""
        self._grow(now_s)
        self.calls -= 1
        return self._integral_s - entered

    def _grow(self, now_s: float) -> None:
        if self.calls:
            self._integral_s += max(0.0, now_s - self._at_s) / self.calls
        self._at_s = now_s
