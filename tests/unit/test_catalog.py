"""gateway/catalog.py: names and aliases; permissions are asked of canonical names, and both misses look alike."""

from collections.abc import Callable

import pytest

from gateway.catalog import Catalog
from gateway.errors import UnknownModel
from gateway.settings import ModelSettings

CATALOG = Catalog.of(
    [ModelSettings(name="big-7b", aliases=("big", "gpt-4o")), ModelSettings(name="small", aliases=("tiny",))]
)


def only(*names: str) -> Callable[[str], bool]:
    return lambda name: name in names


def anything(name: str) -> bool:
    return True


@pytest.mark.parametrize(("name", "canonical"), [("big-7b", "big-7b"), ("gpt-4o", "big-7b"), ("tiny", "small")])
def test_a_name_or_alias_has_a_canonical_name(name: str, canonical: str) -> None:
    """Routing, limits and metrics only ever see that one."""
    assert CATALOG.resolve(name, anything) == canonical


@pytest.mark.parametrize(
    "name",
    [
        "",
        "BIG-7B",
        "big-7b ",
        " big",
        "bi",
        "*",
        "big*",
        "../../etc/passwd",
        "http://x/",
        "\uff42ig",
        "big\0",
        "x" * 10_000,
    ],
)
def test_only_exact_names_exist(name: str) -> None:
    """No pattern, no path, no twin of a letter."""
    with pytest.raises(UnknownModel):
        CATALOG.resolve(name, anything)


def test_a_permission_is_asked_of_the_canonical_name() -> None:
    """Who may call the alias only may call nothing; who may call the model may use its alias."""
    assert CATALOG.resolve("gpt-4o", only("big-7b")) == "big-7b"
    with pytest.raises(UnknownModel):
        CATALOG.resolve("gpt-4o", only("gpt-4o", "small"))


def test_a_forbidden_model_looks_like_one_that_does_not_exist() -> None:
    """Nobody learns which models there are."""
    messages = []
    for name in ("small", "absent"):
        with pytest.raises(UnknownModel) as caught:
            CATALOG.resolve(name, only("big-7b"))
        messages.append(caught.value.message.replace(name, "NAME"))
        assert caught.value.param is None
    assert messages[0] == messages[1]


def test_a_catalog_tells_its_names() -> None:
    """Aliases too, each with what it stands for."""
    assert dict(CATALOG.names()) == {
        "big-7b": "big-7b",
        "big": "big-7b",
        "gpt-4o": "big-7b",
        "small": "small",
        "tiny": "small",
    }
    assert repr(CATALOG) == "<Catalog 2 models, 3 aliases>"
    assert repr(Catalog.of([])) == "<Catalog 0 models, 0 aliases>"
