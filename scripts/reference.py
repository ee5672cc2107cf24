"""Writes the reference pages under docs/ from the models themselves: `python -m scripts.reference [--check]`.

A page that is not what the models say fails `--check`, and with it a test.
"""

import sys
import types
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo

from engine_config.spec import EngineSpec
from gateway.settings import Settings

DOCS = Path(__file__).resolve().parent.parent / "docs"

CONFIGURATION = """# Configuration

Written by `make docs` from `gateway/settings.py`; `pagegate config schema` prints the same as JSON Schema.

One YAML file (`pagegate serve --config FILE`), in which every key may be left out. Unknown keys are refused, and all
problems of a file are named at once: `pagegate config check FILE`. Any setting can also come from the environment, as
`PAGEGATE_SECTION__FIELD`, read as YAML and laid over the file: `PAGEGATE_UPSTREAM__ATTEMPTS=2`. `PAGEGATE_PORT` is
short for `PAGEGATE_SERVER__PORT`. `pagegate config show` prints what is in force, without secrets.

`pagegate up` reads a few more variables: `PAGEGATE_BOOTSTRAP_KEY` (the key it accepts, else one is made and kept),
`PAGEGATE_STATE` (the folder for keys, models and logs, else `.pagegate`) and `PAGEGATE_CONFIG` (a settings file as
base).
"""

ENGINES = """# Engine profiles

Written by `make docs` from `engine_config/spec.py`.

A profile says everything that one vLLM worker needs. `python -m engine_config list` names the shipped ones,
`check PROFILE` refuses impossible ones and warns of unwise ones, `plan PROFILE` says whether it fits its accelerator
and how many concurrent calls it holds, `render PROFILE` prints the command and the environment, or Helm values.
`pagegate up PROFILE...` starts them.
"""


def pages() -> dict[Path, str]:
    """Every generated page, by path."""
    return {
        DOCS / "configuration.md": CONFIGURATION + "".join(tables(Settings, "")),
        DOCS / "engine-profiles.md": ENGINES + "".join(tables(EngineSpec, "")),
    }


def tables(model: type[BaseModel], path: str) -> Iterator[str]:
    """A heading and a table for a model's own fields, then the same for each section in it, depth first."""
    own, sections = [], []
    for name, field in model.model_fields.items():
        inner, many = section_of(field.annotation)
        if inner is None:
            own.append((name, field))
        else:
            sections.append((f"{path}.{name}" if path else name, inner, many, field))
    if path or own:
        yield f"\n## `{path or 'top level'}`\n\n{' '.join((model.__doc__ or '').split())}\n\n"
        yield "| key | type | default | meaning |\n|---|---|---|---|\n"
        for name, field in own:
            meaning = cell(field.description or "")
            yield f"| `{name}` | {type_name(field.annotation)} | {default_of(field)} | {meaning} |\n"
    for where, inner, many, _ in sections:
        yield from tables(inner, f"{where}[]" if many else where)


def section_of(annotation: Any) -> tuple[type[BaseModel] | None, bool]:
    """The model behind a type, and whether there are many of them."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation, False
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType, Annotated):
        found = [section_of(argument) for argument in arguments]
        return next((item for item in found if item[0]), (None, False))
    if origin in (tuple, list, dict):
        return next(((inner, True) for inner, _ in map(section_of, arguments) if inner), (None, False))
    return None, False


def type_name(annotation: Any) -> str:
    """A type in a reader's words."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return type_name(arguments[0])
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(type_name(argument) for argument in arguments if argument is not type(None)))
    if origin is Literal:
        return " / ".join(f"`{argument}`" for argument in arguments)
    if origin in (tuple, list, frozenset, set):
        return f"list of {type_name(arguments[0])}"
    if origin is dict or getattr(origin, "__name__", "") == "Mapping":
        return f"mapping of {type_name(arguments[0])} to {type_name(arguments[1])}"
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return " / ".join(f"`{member.value}`" for member in annotation)
    words = {
        str: "text",
        int: "integer",
        float: "number",
        bool: "true or false",
        Path: "path",
        SecretStr: "secret text",
    }
    return words.get(annotation, getattr(annotation, "__name__", str(annotation)))


def default_of(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True, validated_data={})
    if value is None or value in ((), {}, "", frozenset()):
        return "none"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, tuple):
        return f"`{list(value)}`"
    return f"`{getattr(value, 'value', value)}`"


def cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def main() -> int:
    stale = [path for path, text in pages().items() if not path.exists() or path.read_text() != text]
    if "--check" in sys.argv:
        for path in stale:
            print(
                f"{path.relative_to(DOCS.parent)} is not what the models say: run `make docs`",
                file=sys.stderr,
            )
        return 1 if stale else 0
    for path in stale:
        path.write_text(pages()[path])
        print(f"wrote {path.relative_to(DOCS.parent)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
