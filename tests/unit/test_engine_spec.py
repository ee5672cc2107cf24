"""What a spec can say, and what is said of one that says it wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from engine_config import catalog
from engine_config.problems import BadSpec, Severity
from engine_config.spec import EngineSpec, Section, Source
from tests.unit.engine_specs import examined, spec


def sections(model: type[BaseModel]) -> list[type[BaseModel]]:
    """A model and all models that its fields hold."""
    found = [model]
    for field in model.model_fields.values():
        for option in (field.annotation, *getattr(field.annotation, "__args__", ())):
            if isinstance(option, type) and issubclass(option, BaseModel):
                found += sections(option)
    return found


@pytest.mark.parametrize("section", sections(EngineSpec), ids=lambda section: section.__name__)
def test_every_setting_is_explained(section: type[BaseModel]) -> None:
    """A field without a description would be a setting that only its author knows."""
    assert [name for name, field in section.model_fields.items() if not field.description] == []


@pytest.mark.parametrize("section", sections(EngineSpec), ids=lambda section: section.__name__)
def test_every_section_is_frozen_strict_and_refuses_unknown_keys(section: type[BaseModel]) -> None:
    """What was checked is what runs."""
    assert issubclass(section, Section)
    assert section.model_config.get("frozen")
    assert section.model_config.get("strict")
    assert section.model_config.get("extra") == "forbid"


def test_a_spec_cannot_be_changed() -> None:
    """Whoever holds a spec holds a value."""
    with pytest.raises(ValidationError):
        spec().replicas = 2  # type: ignore[misc]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"kv_cache.block_sise": 16}, "kv_cache.block_sise: is not a known setting"),
        ({"surprise": 1}, "surprise: is not a known setting"),
        ({"kv_cache.memory_fraction": 1.5}, "kv_cache.memory_fraction: must be at most 1.0 (was 1.5)"),
        ({"scheduling.max_sequences": 0}, "scheduling.max_sequences: must be at least 1 (was 0)"),
        ({"scheduling.max_sequences": "8"}, "scheduling.max_sequences: must be a whole number (was '8')"),
        ({"scheduling.max_sequences": 8.0}, "scheduling.max_sequences: must be a whole number (was 8.0)"),
        ({"eager": "yes"}, "eager: must be true or false (was 'yes')"),
        ({"dtype": "bf16"}, "dtype: must be bfloat16, float16 or float32 (was bf16)"),
        ({"model.trust_remote_code": True}, "model.trust_remote_code: must be false (was true)"),
        ({"model.load_format": "pt"}, "model.load_format: must be safetensors (was pt)"),
        ({"served_names": []}, "served_names: must have at least 1 entries"),
        ({"served_names": "one"}, "served_names: must be a list (was one)"),
        ({"kv_cache": 3}, "kv_cache: must be a mapping (was 3)"),
        ({"kv_cache.memory_bytes": "1 GB"}, "kv_cache.memory_bytes: must be a whole number (was '1 GB')"),
        ({"lora": {"max_rank": 12}}, "lora.max_rank: must be 1, 8, 16, 32, 64, 128, 256, 320 or 512 (was 12)"),
        (
            {"model.checksum": {"manifest": "abc"}},
            "model.checksum.manifest: must be a SHA-256: 64 lower-case hexadecimal digits (was abc)",
        ),
        (
            {"name": "Bad Name"},
            "name: must be lower-case letters, digits and dashes, at most 53, as Kubernetes names are (was Bad Name)",
        ),
    ],
)
def test_a_wrong_value_is_named_with_its_path_and_what_is_allowed(changes: dict[str, Any], said: str) -> None:
    """Each problem says where, what is allowed, and what was found."""
    assert said in [str(problem) for problem in examined(changes).problems]


def test_a_misspelt_setting_gets_the_nearest_name() -> None:
    """The remedy is the name that was meant, or all names of the section."""
    near = examined({"kv_cache.block_sise": 16}).problems[0]
    far = examined({"lora": {"xyz": 1}}).problems[0]
    deep = examined({"kv_cache": {"memory_fraction": 0.9, "block_size": {"x": 1}}}).problems[0]
    assert deep.field == "kv_cache.block_size"
    assert near.remedy == "did you mean block_size?"
    assert far.remedy.startswith("known here: max_adapters,")


def test_a_source_is_a_bundle_a_folder_or_a_hub_model() -> None:
    """Nothing else is guessed at."""
    assert spec({"model": {"source": "bundled:smollm2-135m-instruct"}}).model.kind is Source.BUNDLED
    assert spec({"model": {"source": "./models/x"}}).model.kind is Source.FOLDER
    assert spec().model.kind is Source.HUB
    assert examined({"model.source": "just-a-name"}).spec is None
    assert examined({"model.source": "https://example.com/model"}).spec is None


def test_served_names_are_names() -> None:
    """They travel in URLs, headers and metrics."""
    name, size = examined({"served_names": ["fine", "not fine"], "kv_cache.block_size": 48}).problems
    assert str(name).startswith("served_names.1: must be 1 to 128 letters")
    assert size.field == "kv_cache.block_size"
    assert spec({"served_names": ["org/model:tag@v1"]}).served_names == ("org/model:tag@v1",)


def test_a_model_that_cannot_be_counted_is_a_problem_of_its_source(tmp_path: Path) -> None:
    """Its folder is read while the profile is checked."""
    (tmp_path / "config.json").write_text("{")
    (damaged,) = examined({"model": {"source": str(tmp_path)}}).problems
    (tmp_path / "config.json").write_text("{}")
    (strange,) = examined({"model": {"source": str(tmp_path)}}).problems
    assert (damaged.field, strange.field) == ("model.source", "model.source")
    assert "is damaged" in damaged.what
    assert "has no num_hidden_layers" in strange.what


def test_sizes_may_be_written_for_people() -> None:
    """`1GiB` is what 1073741824 means."""
    assert spec({"kv_cache": {"memory_bytes": "1GiB"}}).kv_cache.memory_bytes == 2**30
    assert spec({"kv_cache": {"memory_bytes": "512 MiB"}}).kv_cache.memory_bytes == 2**29
    assert spec({"kv_cache": {"memory_bytes": 4096}}).kv_cache.memory_bytes == 4096


def test_all_problems_come_at_once() -> None:
    """What pydantic finds does not hide what the rules find, and a default in its place accuses nobody."""
    said = [
        problem.field
        for problem in examined(
            {
                "name": "Bad Name",
                "scheduling.max_sequences": "8",
                "kv_cache.block_size": 48,
                "parallelism.tensor": 5,
                "context_tokens": 99_999,
                "environment": {"VLLM_SERVER_DEV_MODE": "1"},
            }
        ).problems
    ]
    assert sorted(said) == [
        "context_tokens",
        "environment.VLLM_SERVER_DEV_MODE",
        "kv_cache.block_size",
        "name",
        "parallelism.tensor",
        "scheduling.max_sequences",
    ]


def test_a_file_that_is_no_yaml_is_one_problem() -> None:
    """Where the text cannot be read there is one thing to say."""
    broken = catalog.examine_text("a: [", "test")
    twice = catalog.examine_text("name: a\nname: b", "test")
    listed = catalog.examine_text("- a", "test")
    tagged = catalog.examine_text("!!python/object/apply:os.system ['true']", "test")
    assert [len(one.problems) for one in (broken, twice, listed, tagged)] == [1, 1, 1, 1]
    assert "name is given twice" in str(twice.problems[0])
    assert str(listed.problems[0]) == "the file: must be a mapping of settings"


def test_a_date_stays_what_was_written() -> None:
    """YAML would make a date of a revision."""
    assert spec({"model.revision": "2025-01-01"}).model.revision == "2025-01-01"


def test_loading_raises_one_error_with_everything(tmp_path: Path) -> None:
    """The message can be shown as it is."""
    path = tmp_path / "bad.yaml"
    path.write_text("name: x\nserved_names: [a, a]\n")
    with pytest.raises(BadSpec) as caught:
        catalog.load(str(path))
    assert f"{path} cannot be used:" in str(caught.value)
    assert "error: model: is required" in str(caught.value)
    assert "error: accelerator: is required" in str(caught.value)


def test_an_unknown_profile_names_the_known_ones() -> None:
    """A typing error is answered with the list."""
    with pytest.raises(BadSpec, match="smollm2-135m-cpu"):
        catalog.load("smollm")
    with pytest.raises(BadSpec, match="cannot be read"):
        catalog.load("./no/such/file.yaml")


@pytest.mark.parametrize("name", catalog.names())
def test_shipped_profiles_have_nothing_against_them(name: str) -> None:
    """Not even a warning, and their names are their files'."""
    found = catalog.examine(name)
    assert found.problems == ()
    assert found.spec is not None
    assert found.spec.name == name


def test_warnings_do_not_stop_a_start(tmp_path: Path) -> None:
    """Unwise is not impossible."""
    path = tmp_path / "unwise.yaml"
    text = Path(catalog.__file__).with_name("profiles") / "smollm2-135m-cpu.yaml"
    path.write_text(text.read_text().replace("shutdown_grace_s: 30", "shutdown_grace_s: 0"))
    assert [p.severity for p in catalog.examine(str(path)).problems] == [Severity.WARNING]
    assert catalog.load(str(path)).shutdown_grace_s == 0
