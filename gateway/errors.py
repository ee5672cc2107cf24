"""Everything that can go wrong with a call, named by whose fault it is.

An error is raised where the fact is known and carries the fact; `edge/rendering.py` alone decides how it
looks to a caller. Nothing here knows about HTTP.
"""


def forget(error: BaseException | None) -> None:
    """Drops the frames that an error came through, and those behind it: what they hold is not needed any more.

    An error that is kept in what it is raised from holds itself, and with it a call's whole body, until the garbage
    collector finds the circle; that may take thousands of calls.
    """
    behind, known = [error], set[int]()
    while behind:
        found = behind.pop()
        if found is not None and id(found) not in known:
            known.add(id(found))
            found.__traceback__ = None
            behind += (found.__cause__, found.__context__)


class GatewayError(Exception):
    """A call ended without a complete reply. The message is for the caller: no URL, path, key or prompt."""

    @property
    def message(self) -> str:
        return str(self)


class BadCall(GatewayError):
    """The caller's fault: the same call will fail again. `param` names the field, where there is one."""

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class Refused(GatewayError):
    """The caller may not do this, or not now. `retry_after_s` says when to come back, None for never."""

    retry_after_s: float | None = None


class Unserved(GatewayError):
    """Our side's fault, before the first byte of a reply: nobody could serve the call now."""

    retry_after_s: float | None = 1.0


class Severed(GatewayError):
    """The reply broke off after its first byte: the caller holds a part of it."""


class CallerLeft(GatewayError):
    """The caller closed the connection; there is nobody to answer and nobody at fault."""

    def __init__(self) -> None:
        super().__init__("the caller left")


# The caller's faults


class NotJson(BadCall):
    """The body is not a JSON object, or a JSON text that two parsers could read differently."""


class UnsupportedParameter(BadCall):
    """A field that this gateway does not pass on to engines."""

    def __init__(self, param: str) -> None:
        super().__init__(f"Unsupported parameter: '{param}' is not accepted by this endpoint.", param)


class UnsupportedMediaType(BadCall):
    def __init__(self, content_type: str, encoding: str = "") -> None:
        encoded = f" with Content-Encoding {encoding[:80]!r}" if encoding else ""
        super().__init__(f"The body must be sent as application/json, unencoded (was {content_type[:80]!r}{encoded}).")


class NotHttp(BadCall):
    def __init__(self, why: str = "it cannot be parsed") -> None:
        super().__init__(f"This is not a valid HTTP/1.1 call: {why}.")


class ExpectationFailed(BadCall):
    def __init__(self) -> None:
        super().__init__("The only expectation that is met is `100-continue`.")


class RepeatedHeader(BadCall):
    def __init__(self, name: str) -> None:
        super().__init__(f"The header '{name}' is given more than once.")


class HeadTooLarge(BadCall):
    def __init__(self, limit_bytes: int) -> None:
        super().__init__(f"The head of the call is larger than {limit_bytes} bytes.")


class TargetTooLong(BadCall):
    def __init__(self, limit_bytes: int) -> None:
        super().__init__(f"The URL of the call is longer than {limit_bytes} bytes.")


class HeadTooSlow(BadCall):
    def __init__(self, limit_s: float) -> None:
        super().__init__(f"The head of the call did not arrive within {limit_s:g} s.")


class BodyTooLarge(BadCall):
    def __init__(self, limit_bytes: int) -> None:
        super().__init__(f"The body is larger than {limit_bytes} bytes.")
        self.limit_bytes = limit_bytes


class BodyTooSlow(BadCall):
    def __init__(self, limit_s: float) -> None:
        super().__init__(f"The body did not arrive within {limit_s:g} s.")


class ContextTooLong(BadCall):
    def __init__(self, limit_tokens: int, prompt_tokens: int, completion_tokens: int) -> None:
        wanted = f"{prompt_tokens} in the messages"
        if completion_tokens:
            wanted += f" and {completion_tokens} for the completion"
        super().__init__(
            f"This model's maximum context length is {limit_tokens} tokens, but this call asks for {wanted}.",
            param="messages",
        )


class UnknownModel(BadCall):
    """The model does not exist or the principal may not call it: both look the same to the caller."""

    def __init__(self, model: str) -> None:
        super().__init__(f"The model `{model[:64]}` does not exist or you do not have access to it.")


class NoSuchRoute(BadCall):
    def __init__(self, method: str, path: str) -> None:
        super().__init__(f"Unknown request URL: {method[:16]} {path[:128]}.")


class WrongMethod(BadCall):
    def __init__(self, method: str, allowed: str) -> None:
        super().__init__(f"Not allowed to {method[:16]} here; use {allowed}.")
        self.allowed = allowed


# Refusals


class NoKey(Refused):
    def __init__(self) -> None:
        super().__init__(
            "You didn't provide an API key. Send it in an Authorization header: `Authorization: Bearer YOUR_KEY`."
        )


class UnknownKey(Refused):
    """Wrong, expired or revoked: one text for all, so that nothing is learnt from it."""

    def __init__(self) -> None:
        super().__init__("Incorrect API key provided.")


class TooManyFailures(Refused):
    """Wrong credentials came from one address too often. Nothing is said of this one."""

    def __init__(self, wait_s: float) -> None:
        super().__init__("Too many calls without a valid API key came from your address.")
        self.retry_after_s = wait_s


class LimitReached(Refused):
    """A limit of the key or its tenant would be exceeded. `limit` is its name in the settings."""

    what = "Rate limit reached"

    def __init__(self, limit: str, allowed: float, owner: str, retry_after_s: float | None) -> None:
        words = limit.replace("_", " ")
        hint = "" if retry_after_s is not None else " This call alone is larger than the limit."
        super().__init__(f"{self.what} for {owner}: {allowed} {words}.{hint}")
        self.limit = limit
        self.retry_after_s = retry_after_s


class BudgetSpent(LimitReached):
    """What may be used up in a day or a month is used up; the next one begins in `retry_after_s`. Retrying is vain.

    It is None for a call that alone is larger than that.
    """

    what = "Budget used up"


class TenantQueueFull(LimitReached):
    """As many calls of the tenant wait for the model as one tenant's may."""

    def __init__(self, tenant: str, allowed: int, retry_after_s: float) -> None:
        super().__init__("waiting_calls", allowed, f"tenant {tenant}", retry_after_s)


# Our side


class GateClosed(Unserved):
    """The gateway runs as many calls as it may."""

    def __init__(self) -> None:
        super().__init__("The gateway is busy: it runs as many calls as it may.")


class TooManyConnections(Unserved):
    """The gateway holds as many connections as it may."""

    def __init__(self) -> None:
        super().__init__("The gateway is busy: it holds as many connections as it may.")


class GatewayFull(Unserved):
    """The gateway has no file left to reach an engine with."""

    def __init__(self) -> None:
        super().__init__("The gateway is busy: it has as many connections open as it may.")


class BodiesWaiting(Unserved):
    """As much of callers' bodies is on its way as there is room for."""

    def __init__(self) -> None:
        super().__init__("The gateway is busy: too many bytes of other calls are still on their way.")


class Draining(Unserved):
    def __init__(self) -> None:
        super().__init__("This gateway is shutting down; try again.")


class KeysUnknown(Unserved):
    """What keys there are cannot be found out yet, or not any more: whether this one is good is not known."""

    def __init__(self) -> None:
        super().__init__("Credentials cannot be checked now; try again.")


class LimitsUnavailable(Unserved):
    """The limits that many gateways share cannot be reached, and the call may not run without them."""

    def __init__(self, retry_after_s: float = 1.0) -> None:
        super().__init__("The limits of this call cannot be checked now; try again.")
        self.retry_after_s = retry_after_s


class QueueFull(Unserved):
    """As many calls wait for the model as may, and none of them has less right to than this one."""

    def __init__(self, model: str, retry_after_s: float) -> None:
        super().__init__(f"Too many calls are waiting for `{model}`.")
        self.retry_after_s = retry_after_s


class WaitTooLong(Unserved):
    """The call would not have its turn in time, as turns are given now."""

    def __init__(self, model: str, retry_after_s: float) -> None:
        super().__init__(f"Calls to `{model}` wait longer for their turn now than this one would.")
        self.retry_after_s = retry_after_s


class NoReplica(Unserved):
    """No replica of the model may take a call: none is up, or none is left to try."""

    def __init__(self, model: str) -> None:
        super().__init__(f"No engine is ready to serve `{model}`.")


class EngineFailed(Unserved):
    """Engines were tried and none gave an answer; `why` is one of our own words, never the engine's."""

    def __init__(self, why: str) -> None:
        super().__init__(f"The engine failed before it answered ({why}).")


class EnginesBusy(Unserved):
    def __init__(self) -> None:
        super().__init__("All engines of this model are at capacity.")


class EngineMisconfigured(Unserved):
    """The engine refuses the gateway itself; retrying will not help."""

    retry_after_s = None

    def __init__(self, status: int) -> None:
        super().__init__("The gateway and its engine do not agree; the operator has to look.")
        self.status = status


class TimedOut(Unserved):
    """No answer in time, and no byte was passed on."""

    def __init__(self, what: str, limit_s: float) -> None:
        super().__init__(f"No {what} within {limit_s:g} s.")


# After the first byte


class EngineLost(Severed):
    def __init__(self) -> None:
        super().__init__("The engine's connection broke off in the middle of the reply.")


class EngineStalled(Severed):
    def __init__(self, limit_s: float) -> None:
        super().__init__(f"The engine sent nothing for {limit_s:g} s.")


class EngineBroke(Severed):
    """The engine said so itself, in an event of the stream."""

    def __init__(self, message: str = "The engine reported an error in the middle of the reply.") -> None:
        super().__init__(message)


class ReplyIncomplete(Severed):
    def __init__(self) -> None:
        super().__init__("The engine ended the reply before it was finished.")


class CallTimedOut(Severed):
    def __init__(self, limit_s: float) -> None:
        super().__init__(f"The call was not finished within {limit_s:g} s.")


class ShuttingDown(Severed):
    def __init__(self) -> None:
        super().__init__("The gateway shut down before the reply was finished.")


class SlowReader(Severed):
    """The caller stopped reading; it cannot be told."""

    def __init__(self, limit_s: float) -> None:
        super().__init__(f"The caller read nothing for {limit_s:g} s.")
