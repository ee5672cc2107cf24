"""The bundled model, made from the installed package for real: once, in the place of a damaged one."""

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from engine_config import bundled, model_files

MAKE = """
import sys
from pathlib import Path
from engine_config.bundled import materialise
materialise(Path(sys.argv[1]), print)
print("torch is loaded" if "torch" in sys.modules else "torch is not loaded")
"""


@dataclass(frozen=True)
class Made:
    """A cache with the model, and what was said while it was made."""

    cache: Path
    said: Sequence[str]

    @property
    def folder(self) -> Path:
        return self.cache / bundled.FOLDER


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    cache = tmp_path_factory.mktemp("models")
    damaged = cache / bundled.FOLDER
    damaged.mkdir()
    (damaged / "config.json").write_text("{")
    (damaged / "model.safetensors").write_bytes(b"")
    (damaged / model_files.SUMS_FILE).write_text(model_files.sums(damaged))
    made = subprocess.run([sys.executable, "-c", MAKE, str(cache)], stdout=subprocess.PIPE, text=True, check=True)
    return Made(cache, made.stdout.splitlines())


def test_the_folder_is_an_ordinary_verified_model(made: Made) -> None:
    """bfloat16 safetensors, tokenizer and chat template, each with its checksum, and nothing else."""
    model_files.verify(made.folder, None)
    assert {path.name for path in made.folder.iterdir()} == {
        "SHA256SUMS",
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    config = json.loads((made.folder / "config.json").read_text())
    assert (config["architectures"], config["dtype"]) == (["LlamaForCausalLM"], "bfloat16")
    assert "<|im_start|>" in (made.folder / "chat_template.jinja").read_text()
    assert model_files.weights_bytes(made.folder) == pytest.approx(269_000_000, rel=0.01)


def test_a_damaged_model_is_named_and_made_anew_step_by_step(made: Made) -> None:
    """Whoever waits sees why and what for; the last line says where the model is."""
    verifying, damage, checking, *steps, ready = made.said[:-1]
    assert verifying == "verifying the bundled model"
    assert "config.json is damaged" in damage
    assert checking == f"checking {bundled.GGUF}"
    assert steps == [
        "loading torch and transformers",
        "reading the tokenizer",
        "reading the weights",
        "writing safetensors",
    ]
    assert str(made.folder) in ready


def test_torch_never_enters_the_process_that_asks(made: Made) -> None:
    """The supervisor stays small: the conversion is a process of its own."""
    assert made.said[-1] == "torch is not loaded"


def test_nothing_but_the_folder_is_left(made: Made) -> None:
    """No half-made folder, no cache of a hub."""
    assert [path.name for path in made.cache.iterdir() if not path.name.endswith(".lock")] == [bundled.FOLDER]
