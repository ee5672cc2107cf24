"""Profiles: the shipped ones by name, others by path, read strictly and with every problem named at once.

Owns where profiles lie and how their YAML is read; what is right in them is decided by `spec` and `rules`.
"""

from __future__ import annotations

import json
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from engine_config import model_files
from engine_config.architecture import Architecture, UnknownArchitecture, known_config, read
from engine_config.problems import BadSpec, Problem, errors, from_validation
from engine_config.rules import check
from engine_config.spec import EngineSpec, Source

# In place of required settings that were not understood: values against which no rule has anything.
_STAND_INS: Mapping[str, Any] = {"name": "unnamed", "served_names": ["unnamed"], "context_tokens": 1}

DEFAULT_CPU = "smollm2-135m-cpu"
DEFAULT_GPU = "smollm2-135m-gpu"


@dataclass(frozen=True, slots=True)
class Examined:
    """A profile that was read: the spec if there is one, and all that is to be said about it."""

    source: str
    spec: EngineSpec | None
    problems: tuple[Problem, ...]


def names() -> list[str]:
    """Names of the shipped profiles, sorted."""
    folder = resources.files("engine_config") / "profiles"
    files = [entry.name for entry in folder.iterdir()]
    return sorted(name.removesuffix(".yaml") for name in files if name.endswith(".yaml"))


def load(name_or_path: str) -> EngineSpec:
    """The spec of a profile.

    Raises:
        BadSpec: There is no such profile, or it has errors; carries all of them, and the warnings too.
    """
    examined = examine(name_or_path)
    if examined.spec is None or errors(examined.problems):
        raise BadSpec(examined.source, examined.problems)
    return examined.spec


def examine(name_or_path: str) -> Examined:
    """Read and check a profile without raising for what is wrong in it.

    Raises:
        BadSpec: There is no such profile.
    """
    source, text = _text(name_or_path)
    return examine_text(text, source)


def examine_text(text: str, source: str) -> Examined:
    """The same for YAML at hand; `source` names it in messages."""
    try:
        document = yaml.load(text, Loader=_StrictLoader)
    except yaml.YAMLError as error:
        return Examined(source, None, (Problem("the file", f"is not valid YAML: {_one_line(error)}"),))
    if not isinstance(document, dict):
        return Examined(source, None, (Problem("the file", "must be a mapping of settings"),))
    try:
        spec = _parse(document)
    except ValidationError as error:
        found = from_validation(error, EngineSpec)
        return Examined(source, None, (*found, *_rest(document, error, found)))
    return Examined(source, spec, tuple(_checked(spec)))


def model_config(spec: EngineSpec) -> Mapping[str, Any] | None:
    """The model's config.json: of its folder, else as shipped; None when neither is at hand."""
    if spec.model.kind is Source.FOLDER:
        folder = Path(spec.model.source)
        return model_files.config(folder) if (folder / "config.json").is_file() else None
    return known_config(spec.model.source)


def _text(name_or_path: str) -> tuple[str, str]:
    if "/" in name_or_path or name_or_path.endswith((".yaml", ".yml")):
        try:
            return name_or_path, Path(name_or_path).read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise BadSpec(name_or_path, [Problem("the file", f"cannot be read: {error}")]) from None
    if name_or_path not in names():
        remedy = f"known are {', '.join(names())}, or give a path with a / in it"
        raise BadSpec(name_or_path, [Problem("the profile", "is not known", remedy)])
    path = resources.files("engine_config") / "profiles" / f"{name_or_path}.yaml"
    return name_or_path, path.read_text("utf-8")


def _parse(document: Mapping[str, Any]) -> EngineSpec:
    # By way of JSON, where strict means: no conversions, yet a list may become a tuple.
    return EngineSpec.model_validate_json(json.dumps(document, default=str))


def _checked(spec: EngineSpec) -> list[Problem]:
    shape: Architecture | None = None
    try:
        config = model_config(spec)
        shape = None if config is None else read(config)
    except (UnknownArchitecture, model_files.BadModel) as error:
        return [*check(spec), Problem("model.source", str(error))]
    return check(spec, shape)


def _rest(document: dict[str, Any], error: ValidationError, found: list[Problem]) -> list[Problem]:
    """What the rules say of the settings that were understood, with defaults in place of the others."""
    pruned = json.loads(json.dumps(document, default=str))
    for detail in error.errors():
        _remove(pruned, [part for part in detail["loc"] if part != "[key]"])
    try:
        spec = _parse({**_STAND_INS, **pruned})
    except ValidationError:
        return []  # without knowing the model or the accelerator there is nothing to ask
    blamed = {problem.field for problem in found}
    return [p for p in _checked(spec) if not any(_is_within(p.field, field) for field in blamed)]


def _is_within(field: str, section: str) -> bool:
    return field == section or field.startswith(section + ".")


def _remove(document: dict[str, Any], path: list[int | str]) -> None:
    """Takes a setting out; the whole list, where one of its entries is meant."""
    for part in path:
        inner = document.get(str(part))
        if part == path[-1] or not isinstance(inner, dict):
            document.pop(str(part), None)
            return
        document = inner


def _one_line(error: yaml.YAMLError) -> str:
    return " ".join(str(error).split())


class _StrictLoader(yaml.SafeLoader):
    """YAML without duplicate keys; a date stays the text that was written."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key_node, _ in node.value:
            key = str(key_node.value)
            if key in seen:
                problem = f"{key} is given twice"
                raise yaml.constructor.ConstructorError(None, None, problem, key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep=deep)
