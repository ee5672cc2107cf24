"""The reference pages are what the models say."""

from pathlib import Path

from pydantic import BaseModel, Field

from scripts.reference import pages, tables


def test_the_reference_pages_are_current() -> None:
    """`make docs` writes them; a changed model with an old page is a wrong page."""
    stale = [path.name for path, text in pages().items() if path.read_text() != text]
    assert not stale, f"run `make docs`: {stale}"


class Inner(BaseModel):
    """A part."""

    path: Path | None = Field(None, description="Where | it is.")


class Outer(BaseModel):
    """The whole."""

    size: int = Field(description="How many.")
    parts: tuple[Inner, ...] = ()


def test_every_key_has_a_row_with_type_default_and_meaning() -> None:
    """Sections follow their parent, those of which there may be many are marked, and a bar cannot break a table."""
    text = "".join(tables(Outer, ""))
    assert "| `size` | integer | required | How many. |" in text
    assert "## `parts[]`\n\nA part." in text
    assert "| `path` | path | none | Where \\| it is. |" in text
