"""A call for tests that care about some of its fields only."""

from typing import Any

from gateway.call import Call

_USUAL = Call(
    id="r",
    path="/v1/chat/completions",
    model="m",
    body={},
    stream=False,
    wants_usage=False,
    choices=1,
    max_tokens=None,
    prompt_bytes=10,
    received_at_s=0.0,
)


def a_call(**fields: Any) -> Call:
    """A plain call for one choice of the model `m`, but for `fields`."""
    return _USUAL._replace(**fields)
