"""Each rule has a spec that it refuses or warns of, and all of them leave a sound spec alone."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import pytest

from engine_config.architecture import known_config, read
from engine_config.model_rules import MODEL_RULES
from engine_config.problems import Problem, Severity
from engine_config.rules import RULES, check
from tests.unit.engine_specs import spec

ERROR, WARNING = Severity.ERROR, Severity.WARNING
ON_CPU = {"accelerator.kind": "cpu", "kv_cache": {"memory_bytes": "8GiB"}}


class Case(NamedTuple):
    """A rule, the changes that it objects to, and the field that it blames."""

    rule: str
    changes: dict[str, Any]
    field: str
    severity: Severity = ERROR
    said: str = ""


CASES = [
    Case("model_is_pinned", {"model": {"source": "Qwen/Qwen3-8B"}}, "model.revision", WARNING),
    Case("model_is_pinned", {"model.revision": "main"}, "model.revision", WARNING, "(was main)"),
    Case("model_is_pinned", {"model.source": "/models/x"}, "model.revision", WARNING, "no meaning"),
    Case("checksum_says_something", {"model.checksum": {}}, "model.checksum"),
    Case(
        "checksum_says_something",
        {"model.checksum": {"manifest": "0" * 64, "files": {"a": "0" * 64}}},
        "model.checksum",
    ),
    Case("names_are_distinct", {"served_names": ["a", "b", "a"]}, "served_names", ERROR, "a is listed twice"),
    Case("names_are_distinct", {"lora": {"adapters": {"sound": "/x"}}}, "lora.adapters.sound"),
    Case("worker_fits_one_machine", {"parallelism": {"tensor": 8, "pipeline": 2}}, "parallelism"),
    Case("cpu_is_not_split", {**ON_CPU, "parallelism.pipeline": 2}, "parallelism.pipeline", WARNING),
    Case("cpu_is_not_split", {**ON_CPU, "parallelism.tensor": 2}, "parallelism.tensor", WARNING),
    Case("cores_match_ranks", {"accelerator.cpu_cores": "0-3"}, "accelerator.cpu_cores"),
    Case("cores_match_ranks", {**ON_CPU, "accelerator.cpu_cores": "all"}, "accelerator.cpu_cores"),
    Case("cores_match_ranks", {**ON_CPU, "accelerator.cpu_cores": "0-3|4-7"}, "accelerator.cpu_cores"),
    Case(
        "quantization_says_its_bits",
        {"quantization": {"method": "compressed-tensors"}},
        "quantization.weight_bits",
    ),
    Case(
        "quantization_says_its_bits",
        {"quantization": {"method": "awq", "weight_bits": 8}},
        "quantization.weight_bits",
    ),
    Case("quantization_suits_dtype", {"quantization": {"method": "awq"}, "dtype": "float32"}, "dtype"),
    Case(
        "fp8_weights_have_hardware",
        {"quantization": {"method": "fp8_per_tensor"}, "accelerator.kind": "a100-80"},
        "quantization.method",
        WARNING,
        "stores FP8 but computes in 16 bits",
    ),
    Case(
        "fp8_weights_have_hardware",
        {**ON_CPU, "quantization": {"method": "fp8_per_tensor"}},
        "quantization.method",
        WARNING,
        "AMX",
    ),
    Case(
        "block_size_is_allowed",
        {"kv_cache.block_size": 48},
        "kv_cache.block_size",
        ERROR,
        "must be one of 16, 32, 64, 128 (was 48)",
    ),
    Case(
        "block_size_is_allowed",
        {**ON_CPU, "kv_cache.block_size": 16},
        "kv_cache.block_size",
        ERROR,
        "must be one of 32, 64, 128 (was 16)",
    ),
    Case("kv_memory_is_said_once", {"kv_cache": {}}, "kv_cache.memory_fraction", ERROR, "is required"),
    Case("kv_memory_is_said_once", {"kv_cache.memory_bytes": "9GiB"}, "kv_cache.memory_fraction"),
    Case("kv_fraction_is_wise", {"kv_cache.memory_fraction": 0.99}, "kv_cache.memory_fraction", WARNING),
    Case("kv_fraction_is_wise", {"accelerator.kind": "cpu"}, "kv_cache.memory_fraction", WARNING),
    Case("kv_dtype_has_kernel", {**ON_CPU, "kv_cache.dtype": "float16"}, "kv_cache.dtype"),
    Case(
        "kv_dtype_has_kernel",
        {"kv_cache.dtype": "fp8_e5m2", "quantization": {"method": "fp8"}},
        "kv_cache.dtype",
    ),
    Case("kv_dtype_has_kernel", {"kv_cache.dtype": "fp8", "accelerator.kind": "l4"}, "kv_cache.dtype", WARNING),
    Case("events_can_be_published", {"kv_cache.events": True, "kv_cache.prefix_caching": False}, "kv_cache.events"),
    Case("events_can_be_published", {"kv_cache.events": True, "parallelism.data": 2}, "kv_cache.events"),
    Case("step_holds_what_it_must", {"scheduling.max_sequences": 4096}, "scheduling.max_batched_tokens"),
    Case("step_holds_what_it_must", {"scheduling.chunked_prefill": False}, "scheduling.max_batched_tokens"),
    Case(
        "step_holds_what_it_must",
        {"scheduling": {"chunked_prefill": False, "max_batched_tokens": 8192}},
        "scheduling.chunked_prefill",
        WARNING,
    ),
    Case("step_holds_what_it_must", {"scheduling.max_in_flight": 8}, "scheduling.max_in_flight", WARNING),
    Case("adapters_fit", {"lora": {"max_adapters": 4, "max_cpu_adapters": 2}}, "lora.max_cpu_adapters"),
    Case("speculation_is_possible", {"speculation": {"method": "eagle", "tokens": 3}}, "speculation.model"),
    Case(
        "speculation_is_possible",
        {"speculation": {"method": "ngram", "tokens": 3, "model": "/x"}},
        "speculation.model",
    ),
    Case(
        "speculation_is_possible",
        {"speculation": {"method": "ngram", "tokens": 3, "ngram_min": 6}},
        "speculation.ngram_min",
    ),
    Case(
        "speculation_is_possible",
        {"task": "embed", "speculation": {"method": "ngram", "tokens": 3}},
        "speculation",
    ),
    Case(
        "speculation_is_possible",
        {"speculation": {"method": "ngram", "tokens": 32}},
        "scheduling.max_batched_tokens",
        WARNING,
    ),
    Case(
        "speculation_is_possible",
        {"speculation": {"method": "ngram", "tokens": 32}, "lora": {}},
        "scheduling.max_batched_tokens",
    ),
    Case("parsers_exist", {"chat.tool_parser": "hermess"}, "chat.tool_parser"),
    Case("parsers_exist", {"chat.reasoning_parser": "none"}, "chat.reasoning_parser"),
    Case("parsers_exist", {"task": "embed", "chat.tool_parser": "hermes"}, "chat"),
    Case(
        "environment_is_harmless",
        {"environment": {"VLLM_ALLOW_INSECURE_SERIALIZATION": "1"}},
        "environment.VLLM_ALLOW_INSECURE_SERIALIZATION",
        ERROR,
        "run code",
    ),
    Case("tracing_reaches_somebody", {"tracing": {"otlp_endpoint": "here:4318"}}, "tracing.otlp_endpoint"),
    Case("calls_may_end", {"shutdown_grace_s": 0}, "shutdown_grace_s", WARNING),
    Case("graphs_are_worth_it", {"eager": True}, "eager", WARNING),
    Case("graphs_are_worth_it", {"dtype": "float32"}, "dtype", WARNING),
]

MODEL_CASES = [
    Case("context_is_trained", {"context_tokens": 40_961}, "context_tokens", ERROR, "(was 40961)"),
    Case("tensor_divides_heads", {"parallelism.tensor": 3}, "parallelism.tensor", ERROR, "32 attention heads"),
    Case("stages_have_layers", {"parallelism.pipeline": 37}, "parallelism.pipeline"),
    Case("experts_are_there", {"parallelism.expert": True}, "parallelism.expert"),
    Case("experts_are_there", {"parallelism.data": 2}, "parallelism.data", WARNING),
    Case("checkpoint_is_quantized_so", {"quantization": {"method": "awq"}}, "quantization.method"),
    Case("cache_holds_a_call", {"kv_cache": {"memory_bytes": "1GiB"}}, "kv_cache.memory_bytes"),
]


def names(rules: Iterable[Any]) -> set[str]:
    return {rule.__name__ for rule in rules}


def matches(problem: Problem, case: Case) -> bool:
    return problem.field == case.field and problem.severity is case.severity and case.said in problem.what


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.rule}-{case.field}")
def test_a_rule_finds_what_it_is_for(case: Case) -> None:
    """The rule itself speaks, with the severity that the fact deserves, and says what to do."""
    (rule,) = [rule for rule in RULES if rule.__name__ == case.rule]
    found = [problem for problem in rule(spec(case.changes)) if matches(problem, case)]
    assert len(found) == 1
    assert found[0].remedy


@pytest.mark.parametrize("case", MODEL_CASES, ids=lambda case: f"{case.rule}-{case.field}")
def test_a_rule_about_the_model_finds_what_it_is_for(case: Case) -> None:
    """The same for rules that need to know the model."""
    config = known_config("Qwen/Qwen3-8B")
    assert config is not None
    (rule,) = [rule for rule in MODEL_RULES if rule.__name__ == case.rule]
    found = [problem for problem in rule(spec(case.changes), read(config)) if matches(problem, case)]
    assert len(found) == 1
    assert found[0].remedy


def test_every_rule_has_a_case() -> None:
    """A rule that nothing can break is no rule."""
    assert {case.rule for case in CASES} == names(RULES)
    assert {case.rule for case in MODEL_CASES} == names(MODEL_RULES)


@pytest.mark.parametrize("rule", [*RULES, *MODEL_RULES], ids=lambda rule: rule.__name__)
def test_a_sound_spec_passes_every_rule(rule: Any) -> None:
    """A rule that always speaks is no rule either."""
    config = known_config("Qwen/Qwen3-8B")
    assert config is not None
    assert list(rule(spec()) if rule in RULES else rule(spec(), read(config))) == []


def test_tensor_above_the_kv_heads_is_a_waste() -> None:
    """Heads are then held more than once; the model still runs."""
    shape = read({**(known_config("Qwen/Qwen3-8B") or {}), "num_key_value_heads": 2})
    (problem,) = [p for p in check(spec({"parallelism.tensor": 4}), shape) if p.field == "parallelism.tensor"]
    assert problem.severity is WARNING


def test_a_quantized_checkpoint_must_be_named_as_it_is() -> None:
    """vLLM refuses a method that the checkpoint contradicts."""
    shape = read(known_config("Qwen/Qwen3-32B-FP8") or {})
    fields = {
        method: [p.field for p in check(spec({"quantization": {"method": method}}), shape)]
        for method in ("fp8", "gptq")
    }
    assert fields == {"fp8": [], "gptq": ["quantization.method"]}
    assert [p.field for p in check(spec(), shape)] == ["quantization"]


def test_errors_come_before_warnings() -> None:
    """What must be changed is read first."""
    found = check(spec({"shutdown_grace_s": 0, "kv_cache.block_size": 48}))
    assert [problem.severity for problem in found] == [ERROR, WARNING]
