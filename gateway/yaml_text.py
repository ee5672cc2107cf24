"""Strict YAML: a key that stands twice is a mistake, not a way to say two things of which the last counts."""

from collections.abc import Hashable
from typing import Any

import yaml


class NotYaml(Exception):
    """A text that cannot be read, and why, in one line."""


def parse(text: str) -> Any:
    """The value of a YAML text. Raises NotYaml."""
    try:
        return yaml.load(text, _StrictLoader)
    except yaml.YAMLError as error:
        raise NotYaml(" ".join(str(error).split())) from None
    except RecursionError:
        raise NotYaml("it is nested too deeply") from None


class _StrictLoader(yaml.SafeLoader):
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if str(key.value) in seen:
                raise yaml.constructor.ConstructorError(None, None, f"`{key.value}` is given twice", key.start_mark)
            seen.add(str(key.value))
        return super().construct_mapping(node, deep=deep)
