"""Why an act of administration was not done. How that looks to who asked is decided in `api.py`."""

from gateway.errors import BadCall, Refused, Unserved
from gateway.settings import Role


class RoleTooSmall(Refused):
    """The administrator's role does not permit the act."""

    def __init__(self, act: str, needed: Role, role: Role) -> None:
        super().__init__(f"This needs the role `{needed}` ({act}); your credential has the role `{role}`.")
        self.needed = needed


class NotThere(BadCall):
    """There is no such thing; `kind` is one of our words."""

    def __init__(self, kind: str, name: str) -> None:
        super().__init__(f"There is no {kind} `{name[:128]}`.")


class InTheWay(BadCall):
    """What there is already does not let this be done."""


class FromFile(InTheWay):
    """The thing is named in the settings file, which wins over the database."""

    def __init__(self, kind: str, name: str) -> None:
        super().__init__(
            f"The {kind} `{name}` is managed by the gateway's settings file and cannot be changed here: edit the file."
        )


class StoreAway(Unserved):
    """The database cannot be reached, so nothing can be looked up or changed."""

    def __init__(self) -> None:
        super().__init__("The gateway's database cannot be reached; nothing was changed. Try again.")
