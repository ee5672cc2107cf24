"""A hub model is taken from the cache that the hub's own library keeps; the network is switched off here."""

from pathlib import Path

import pytest

from engine_config import hub
from engine_config.model_files import BadModel

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and no hub."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return tmp_path


def test_a_fetched_revision_is_found_again(cache: Path) -> None:
    """Without asking anybody."""
    snapshot = cache / "models--org--name" / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    assert hub.fetch("org/name", COMMIT) == str(snapshot)


def test_a_model_that_cannot_be_fetched_says_what_to_do(cache: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """One error of ours; what the hub's library said stands above it."""
    with pytest.raises(BadModel, match=r"Give a folder as model\.source"):
        hub.fetch("org/name", None)
    said = capfd.readouterr().err
    assert "LocalEntryNotFoundError" in said
    assert "Traceback" not in said
