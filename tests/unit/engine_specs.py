"""Specs for the engine tests: one that is in order, and changes to it by dotted path."""

from __future__ import annotations

import copy
from typing import Any

import yaml

from engine_config import catalog
from engine_config.spec import EngineSpec

# On a GPU, with the architecture of Qwen/Qwen3-8B: 32 heads, 8 KV heads, 36 layers, 40,960 tokens.
SOUND: dict[str, Any] = {
    "name": "sound",
    "model": {"source": "Qwen/Qwen3-8B", "revision": "b968826d9c46dd6066d109eabc6255188de91218"},
    "served_names": ["sound"],
    "context_tokens": 8192,
    "kv_cache": {"memory_fraction": 0.9},
    "accelerator": {"kind": "h100"},
}


def document(changes: dict[str, Any] | None = None) -> dict[str, Any]:
    """The sound document with values set at dotted paths."""
    made = copy.deepcopy(SOUND)
    for path, value in (changes or {}).items():
        *sections, name = path.split(".")
        inner = made
        for section in sections:
            inner = inner.setdefault(section, {})
        inner[name] = value
    return made


def examined(changes: dict[str, Any] | None = None) -> catalog.Examined:
    """What is said of the sound document with these changes."""
    return catalog.examine_text(yaml.safe_dump(document(changes)), "test")


def spec(changes: dict[str, Any] | None = None) -> EngineSpec:
    """A spec, whatever the rules say of it."""
    made = examined(changes).spec
    assert made is not None, examined(changes).problems
    return made
