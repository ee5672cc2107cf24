"""Only whole, safe folders go live."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from engine_config import model_files
from engine_config.model_files import BadModel
from engine_config.spec import Checksum


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with what a model needs."""
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    (tmp_path / "tokenizer.json").write_text("{}")
    return tmp_path


def sha256(text: bytes) -> str:
    return hashlib.sha256(text).hexdigest()


def test_a_whole_folder_passes(folder: Path) -> None:
    """With and without something to compare it to."""
    model_files.verify(folder, None)
    model_files.verify(folder, Checksum(files={"model.safetensors": sha256(b"weights")}))
    manifest = sha256(model_files.sums(folder).encode())
    model_files.verify(folder, Checksum(manifest=manifest))
    assert model_files.weights_bytes(folder) == len(b"weights")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.PT", "deep/er/optimizer.pkl", "modeling_x.py"])
def test_a_file_that_can_run_code_is_refused_by_its_name(folder: Path, name: str) -> None:
    """Before anything opens it, wherever it lies."""
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(b"")
    with pytest.raises(BadModel, match="can run code when read"):
        model_files.verify(folder, None)


def test_a_model_with_code_of_its_own_is_refused(folder: Path) -> None:
    """auto_map is what trust_remote_code would follow."""
    (folder / "config.json").write_text(json.dumps({"auto_map": {"AutoModel": "x.Y"}}))
    with pytest.raises(BadModel, match="auto_map"):
        model_files.verify(folder, None)


def test_a_folder_without_weights_or_configuration_says_what_is_missing(folder: Path) -> None:
    """Each with its own words."""
    (folder / "model.safetensors").unlink()
    with pytest.raises(BadModel, match=r"no \*\.safetensors"):
        model_files.verify(folder, None)
    (folder / "config.json").write_text("{")
    with pytest.raises(BadModel, match="is damaged"):
        model_files.verify(folder, None)
    (folder / "config.json").write_text("[]")
    with pytest.raises(BadModel, match="holds no object"):
        model_files.verify(folder, None)
    (folder / "config.json").unlink()
    with pytest.raises(BadModel, match=r"config\.json is missing"):
        model_files.verify(folder, None)


def test_one_changed_byte_is_found(folder: Path) -> None:
    """By the profile's checksums, by its manifest, and by the folder's own sums."""
    files = Checksum(files={"model.safetensors": sha256(b"weights")})
    manifest = Checksum(manifest=sha256(model_files.sums(folder).encode()))
    (folder / model_files.SUMS_FILE).write_text(model_files.sums(folder))
    model_files.verify(folder, manifest)
    (folder / "model.safetensors").write_bytes(b"weightz")
    with pytest.raises(BadModel, match=r"model.safetensors does not have the checksum of SHA256SUMS"):
        model_files.verify(folder, None)
    (folder / model_files.SUMS_FILE).unlink()
    with pytest.raises(BadModel, match="checksum of the profile"):
        model_files.verify(folder, files)
    with pytest.raises(BadModel, match="not the model that the profile names"):
        model_files.verify(folder, manifest)


def test_a_missing_file_is_found(folder: Path) -> None:
    """A shard that was not fetched is not a smaller model."""
    with pytest.raises(BadModel, match=r"is incomplete: model-2.safetensors"):
        model_files.verify(folder, Checksum(files={"model-2.safetensors": "0" * 64}))


def test_sums_are_those_of_sha256sum(folder: Path) -> None:
    """Sorted, two spaces, notes of download tools left out: `sha256sum -c` reads them."""
    (folder / ".cache").mkdir()
    (folder / ".cache" / "note").write_text("x")
    (folder / "sub").mkdir()
    (folder / "sub" / "a.json").write_text("1")
    lines = model_files.sums(folder).splitlines()
    assert [line.split("  ")[1] for line in lines] == [
        "config.json",
        "model.safetensors",
        "sub/a.json",
        "tokenizer.json",
    ]
    assert lines[1] == f"{sha256(b'weights')}  model.safetensors"
