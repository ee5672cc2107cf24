"""What is wrong with a spec, as values: one `Problem` a fact, each naming its field and a remedy.

Owns the wording of what pydantic finds; what pydantic cannot know is found by `rules`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails


class Severity(StrEnum):
    """An error means that the worker cannot or must not start; a warning, that it will but unwisely."""

    ERROR = "error"
    WARNING = "warning"


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with a spec.

    Attributes:
        field: Dotted path of the field that would have to change, e.g. `kv_cache.block_size`.
        what: What is wrong, with the value found.
        remedy: What to write instead, as an instruction.
        severity: Whether the worker may start all the same.
    """

    field: str
    what: str
    remedy: str = ""
    severity: Severity = Severity.ERROR

    def __str__(self) -> str:
        return f"{self.field}: {self.what}"


def warning(field: str, what: str, remedy: str) -> Problem:
    """A problem that does not forbid the start."""
    return Problem(field, what, remedy, Severity.WARNING)


class BadSpec(Exception):
    """A spec that cannot be used; carries every problem that was found, warnings included."""

    def __init__(self, source: str, problems: Sequence[Problem]) -> None:
        self.source = source
        self.problems = tuple(problems)
        lines = [f"{source} cannot be used:"]
        for problem in self.problems:
            lines.append(f"  {problem.severity}: {problem}")
            if problem.remedy:
                lines.append(f"    {problem.remedy}")
        super().__init__("\n".join(lines))


def errors(problems: Iterable[Problem]) -> list[Problem]:
    """Those that forbid the start."""
    return [problem for problem in problems if problem.severity is Severity.ERROR]


def from_validation(error: ValidationError, model: type[BaseModel]) -> list[Problem]:
    """Pydantic's findings about a `model`, in the order of its fields, in our words."""
    return [_problem(detail, model) for detail in error.errors(include_url=False)]


# By pydantic's error type; {} is filled from the error's context.
_WORDS: Mapping[str, str] = {
    "missing": "is required",
    "string_type": "must be a string",
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "finite_number": "must be a finite number",
    "bool_type": "must be true or false",
    "dict_type": "must be a mapping",
    "model_type": "must be a mapping",
    "model_attributes_type": "must be a mapping",
    "tuple_type": "must be a list",
    "greater_than": "must be more than {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be less than {lt}",
    "less_than_equal": "must be at most {le}",
    "too_short": "must have at least {min_length} entries",
    "string_too_short": "must not be empty",
    "string_too_long": "must have at most {max_length} characters",
    "literal_error": "must be {expected}",
    "value_error": "{error}",
}

# A number in quotes is a string: the quotes are what has to be seen.
_NOT_A_STRING = frozenset({"int_type", "float_type", "bool_type"})


def _problem(detail: ErrorDetails, model: type[BaseModel]) -> Problem:
    path = [str(part) for part in detail["loc"] if part != "[key]"]
    kind, context = detail["type"], detail.get("ctx", {})
    if kind == "extra_forbidden":
        return Problem(".".join(path), "is not a known setting", _suggestion(model, path))
    what = _WORDS.get(kind, detail["msg"][:1].lower() + detail["msg"][1:]).format(**context)
    if kind == "literal_error":
        what = what.replace("'", "").replace("False", "false")
    if kind not in ("missing", "too_short"):
        shown = repr(detail["input"]) if kind in _NOT_A_STRING else _shown(detail["input"])
        what += f" (was {shown})"
    return Problem(".".join(path) or "the file", what)


def _shown(value: Any) -> str:
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _suggestion(model: type[BaseModel], path: Sequence[str]) -> str:
    """The nearest known name, or all the names that the section has."""
    section = _section(model, path[:-1])
    near = difflib.get_close_matches(path[-1], section.model_fields, n=1)
    if near:
        return f"did you mean {near[0]}?"
    return f"known here: {', '.join(section.model_fields)}"


def _section(model: type[BaseModel], path: Sequence[str]) -> type[BaseModel]:
    for name in path:
        annotation = model.model_fields[name].annotation
        options = (annotation, *getattr(annotation, "__args__", ()))
        model = next(o for o in options if isinstance(o, type) and issubclass(o, BaseModel))
    return model
