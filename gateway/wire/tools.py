"""Tools that a model may call: functions of the caller's own. A tool that a server would run is none: nobody runs it.

Whether the model knows tools, and what their parameters mean, is left to the engine.
"""

from gateway.wire.rules import any_object, any_text, boolean, either, listing, one_of, record, tagged, text
from gateway.wire.schemas import json_schema

MAX_TOOLS = 512
MAX_NAME_CHARS = 128

_name = text(MAX_NAME_CHARS)
_function = record(
    {
        "name": _name,
        "description": any_text,
        "parameters": json_schema,
        "strict": boolean,
        "defer_loading": boolean,
    },
    needed=("name",),
)
_tool = record(
    # The last two are hints for other makers' caches and for vLLM.
    {"type": one_of("function"), "function": _function, "cache_control": any_object, "defer_loading": boolean},
    needed=("type", "function"),
)

tools = listing(
    tagged("type", {"function": _tool}, "; tools that a server runs are not run here"), MAX_TOOLS, "functions"
)
tool_choice = either(
    "'none', 'auto', 'required' or {'type': 'function', 'function': {'name': ...}}",
    one_of("none", "auto", "required"),
    record(
        {"type": one_of("function"), "function": record({"name": _name}, needed=("name",))},
        needed=("type", "function"),
    ),
)
