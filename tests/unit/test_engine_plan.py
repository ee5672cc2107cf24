"""The arithmetic of a plan, held to published sizes and to what vLLM reports."""

from __future__ import annotations

from importlib import resources
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from engine_config import catalog
from engine_config.accelerators import GIB
from engine_config.architecture import UnknownArchitecture, known_config, read
from engine_config.memory import bytes_per_weight, kv_bytes_per_token, weight_bytes
from engine_config.plan import plan
from engine_config.spec import EngineSpec, Quantization
from tests.unit.engine_specs import spec

KNOWN: dict[str, Any] = yaml.safe_load(
    resources.files("engine_config").joinpath("architectures.yaml").read_text("utf-8")
)
QWEN3_8B = KNOWN["Qwen/Qwen3-8B"]["config"]
# config.json of deepseek-ai/DeepSeek-V2-Lite: latent attention, 64 experts of which 2 more are shared, and one
# dense layer. Published: 15.7 B parameters.
DEEPSEEK_V2_LITE: dict[str, Any] = {
    "model_type": "deepseek_v2",
    "num_hidden_layers": 27,
    "hidden_size": 2048,
    "intermediate_size": 10944,
    "moe_intermediate_size": 1408,
    "n_routed_experts": 64,
    "n_shared_experts": 2,
    "num_experts_per_tok": 6,
    "first_k_dense_replace": 1,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "kv_lora_rank": 512,
    "q_lora_rank": None,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "vocab_size": 102400,
    "max_position_embeddings": 163840,
    "tie_word_embeddings": False,
}


def with_kv(gib: int, changes: dict[str, Any] | None = None) -> EngineSpec:
    return spec({**(changes or {}), "kv_cache": {"memory_bytes": gib * GIB}})


@pytest.mark.parametrize("source", KNOWN)
def test_parameters_are_counted_as_published(source: str) -> None:
    """To the last parameter: a count that is nearly right is wrong somewhere."""
    assert read(KNOWN[source]["config"]).parameters == KNOWN[source]["parameters"]


def test_every_profile_is_of_a_known_model() -> None:
    """`plan` and the rules about models need no network for what is shipped."""
    assert {catalog.load(name).model.source for name in catalog.names()} == set(KNOWN)


def test_latent_attention_and_shared_experts_are_counted() -> None:
    """DeepSeek's kind: 15.7 billion parameters, 576 cached numbers a layer whatever the tensor parallelism."""
    shape = read(DEEPSEEK_V2_LITE)
    assert round(shape.parameters / 1e9, 2) == 15.71
    queries = read({**DEEPSEEK_V2_LITE, "q_lora_rank": 1536})
    assert queries.layer(sparse=False).whole - shape.layer(sparse=False).whole == 2048 * 1536 + 1536
    for tensor in (1, 2, 4):
        cut = spec({"parallelism.tensor": tensor})
        assert kv_bytes_per_token(cut, shape) == 27 * (512 + 64) * 2


def test_the_default_profile_plans_what_vllm_reports() -> None:
    """vLLM 0.32 logs `CPU KV cache size: 46,592 tokens, Maximum concurrency ...: 22.75x` for it."""
    sound = catalog.load("smollm2-135m-cpu")
    sized = plan(sound, KNOWN[sound.model.source]["config"], host_memory_bytes=8 * GIB)
    assert sized.kv_bytes_per_token == 30 * 2 * 3 * 64 * 2
    assert (sized.kv_blocks, sized.kv_tokens) == (1456, 46_592)
    assert sized.calls_at_full_context == 22
    assert sized.fits


@pytest.mark.parametrize("name", catalog.names())
def test_every_shipped_profile_fits_its_accelerator(name: str) -> None:
    """And holds more than one call of full length: a profile is not an exercise in squeezing."""
    one = catalog.load(name)
    sized = plan(one, KNOWN[one.model.source]["config"], host_memory_bytes=8 * GIB)
    assert sized.fits, sized.reasons
    assert sized.calls_at_full_context >= 4
    assert sized.changes == ()


def test_the_kv_cache_is_cut_by_heads_and_stages() -> None:
    """Eight KV heads halve with two ranks, and are repeated beyond eight."""
    shape = read(QWEN3_8B)
    whole = kv_bytes_per_token(spec(), shape)
    assert whole == 36 * 2 * 8 * 128 * 2
    assert kv_bytes_per_token(spec({"parallelism.tensor": 2}), shape) == whole // 2
    assert kv_bytes_per_token(spec({"parallelism.pipeline": 2}), shape) == whole // 2
    assert kv_bytes_per_token(spec({"kv_cache.dtype": "fp8"}), shape) == whole // 2
    narrow = read({**QWEN3_8B, "num_key_value_heads": 2})
    assert kv_bytes_per_token(spec({"parallelism.tensor": 4}), narrow) == 36 * 2 * 1 * 128 * 2


def test_weights_follow_dtype_quantization_and_parallelism() -> None:
    """16-bit weights take two bytes each; embeddings keep them when the rest is quantized."""
    shape = read(QWEN3_8B)
    whole = weight_bytes(spec(), shape)
    assert whole == 2 * shape.parameters
    assert weight_bytes(spec({"dtype": "float32"}), shape) == 2 * whole
    fp8 = weight_bytes(spec({"quantization": {"method": "fp8_per_tensor"}}), shape)
    linear = shape.parameters - shape.embedding_parameters
    assert fp8 == pytest.approx(2 * shape.embedding_parameters + linear, rel=0.001)
    # Norms are not cut, everything else is.
    assert weight_bytes(spec({"parallelism.tensor": 4}), shape) == pytest.approx(whole / 4, rel=0.001)


def test_experts_are_dealt_out_over_all_ranks() -> None:
    """With expert parallelism data ranks share the experts; without it each holds them all."""
    shape = read(KNOWN["Qwen/Qwen3-30B-A3B"]["config"])
    copies = weight_bytes(spec({"parallelism": {"data": 2}}), shape)
    shared = weight_bytes(spec({"parallelism": {"data": 2, "expert": True}}), shape)
    experts = 48 * 128 * 3 * 2048 * 768
    assert copies - shared == experts * 2 // 2


@pytest.mark.parametrize(
    ("quantization", "size"),
    [
        (None, None),
        (Quantization(method="fp8"), 1.0),
        (Quantization(method="compressed-tensors", weight_bits=8), 1.0),
        (Quantization(method="compressed-tensors", weight_bits=4), 0.5 + 2.5 / 128),
        (Quantization(method="awq"), 0.5 + 2.5 / 128),
        (Quantization(method="gptq"), 0.5 + 2.5 / 128),
        (Quantization(method="gptq", weight_bits=8), 1.0),
        (Quantization(method="mxfp4"), 0.53125),
    ],
)
def test_a_quantized_weight_has_its_share_of_the_scales(quantization: Quantization | None, size: float | None) -> None:
    """What the files of such checkpoints come to."""
    assert bytes_per_weight(quantization) == size


def test_the_size_of_the_files_wins_over_the_count() -> None:
    """Where the weights are at hand nothing is guessed; unless they are compressed while loading."""
    files = 20 * GIB
    assert plan(spec(), QWEN3_8B, files).memory.weights == files
    assert plan(spec({"parallelism.tensor": 2}), QWEN3_8B, files).memory.weights == files // 2
    at_load = spec({"quantization": {"method": "fp8_per_tensor"}})
    assert plan(at_load, QWEN3_8B, files).memory.weights == plan(at_load, QWEN3_8B).memory.weights


def test_what_does_not_fit_comes_with_changes_that_do() -> None:
    """A 70B in BF16 on two H100: every proposal, taken by itself, gives a plan that fits."""
    config = KNOWN["meta-llama/Llama-3.3-70B-Instruct"]["config"]
    tight = spec({"parallelism.tensor": 2, "context_tokens": 32_768, "kv_cache": {"memory_fraction": 0.92}})
    sized = plan(tight, config)
    assert not sized.fits
    assert "fewer than one call of 32,768" in sized.reasons[0]
    settings = [change.split(": ")[0] for change in sized.changes]
    assert settings[:2] == ["context_tokens", "kv_cache.memory_fraction"]
    assert {"kv_cache.dtype", "quantization.method", "parallelism.tensor", "accelerator.kind"} <= set(settings)
    shorter = int(sized.changes[0].split(": ")[1].split(" ")[0])
    assert plan(tight.model_copy(update={"context_tokens": shorter}), config).fits
    assert not plan(tight.model_copy(update={"context_tokens": shorter + 16}), config).fits


def test_weights_larger_than_the_device_say_so() -> None:
    """Nothing about the cache is said before the weights fit."""
    sized = plan(spec(), KNOWN["meta-llama/Llama-3.3-70B-Instruct"]["config"])
    assert sized.kv_tokens == 0
    assert "are needed, a device has 79.0 GiB" in sized.reasons[0]
    assert all(change.startswith(("parallelism", "accelerator")) for change in sized.changes)


def test_too_few_bytes_for_the_cache_get_the_number_that_is_enough() -> None:
    """The proposed bytes hold exactly one call of full length, the block that vLLM keeps included."""
    small = with_kv(1)
    sized = plan(small, QWEN3_8B)
    (enough,) = [c for c in sized.changes if c.startswith("kv_cache.memory_bytes")]
    wanted = int(enough.split(": ")[1].split(" ")[0])
    assert enough.endswith("(1 call at full context)")
    kv_cache = small.kv_cache.model_copy(update={"memory_bytes": wanted})
    assert plan(small.model_copy(update={"kv_cache": kv_cache}), QWEN3_8B).calls_at_full_context == 1


def test_a_sliding_window_is_noted() -> None:
    """The count takes every layer as a full one, and says so."""
    gemma = {name: value for name, value in QWEN3_8B.items() if name != "use_sliding_window"}
    gemma |= {"model_type": "gemma3", "sliding_window": 1024, "sliding_window_pattern": 6}
    assert plan(spec(), gemma).notes == ("30 of 36 layers keep only 1,024 tokens: more calls fit than counted here",)
    typed = {**gemma, "layer_types": ["sliding_attention", "full_attention"] * 18}
    assert read(typed).windowed_layers == 18
    mistral = {name: value for name, value in typed.items() if name not in ("layer_types", "sliding_window_pattern")}
    assert read(mistral).windowed_layers == 36
    assert read({**QWEN3_8B, "sliding_window": 4096, "use_sliding_window": False}).window is None


def test_a_model_without_a_cache_holds_as_many_as_a_step() -> None:
    """An encoder reads each text once."""
    encoder = {**QWEN3_8B, "model_type": "bert"}
    sized = plan(with_kv(1, {"task": "embed", "scheduling.max_sequences": 7}), encoder)
    assert (sized.kv_bytes_per_token, sized.kv_blocks, sized.calls_at_full_context) == (0, 0, 7)
    assert sized.fits


def test_adapters_and_data_ranks_are_counted() -> None:
    """Adapters take memory from the cache; each data rank brings its own."""
    plain = plan(spec(), QWEN3_8B)
    adapted = plan(spec({"lora": {"max_adapters": 8, "max_rank": 64}}), QWEN3_8B)
    assert adapted.memory.adapters > GIB
    assert adapted.kv_tokens < plain.kv_tokens
    doubled = plan(with_kv(8, {"parallelism.data": 2}), QWEN3_8B)
    assert doubled.kv_tokens == 2 * plan(with_kv(8), QWEN3_8B).kv_tokens


def test_a_cpu_without_known_memory_says_what_it_needs() -> None:
    """The machine's memory is not the spec's business."""
    sound = catalog.load("smollm2-135m-cpu")
    config = KNOWN[sound.model.source]["config"]
    assert plan(sound, config).notes == ("the machine needs 3.6 GiB of memory",)
    assert "are needed" in plan(sound, config, host_memory_bytes=3 * GIB).reasons[0]


def test_what_is_not_counted_is_said() -> None:
    """A draft model and encoders take memory of which the configuration tells nothing."""
    changes = {"speculation": {"method": "eagle", "tokens": 2, "model": "/draft"}, "multimodal": {"images": 1}}
    assert len(plan(spec(changes), QWEN3_8B).notes) == 2


def test_a_full_fraction_and_an_fp8_cache_are_not_proposed_again() -> None:
    """What the spec already has is no change."""
    tight = spec({"accelerator.kind": "l4", "kv_cache": {"memory_fraction": 0.95, "dtype": "fp8"}})
    sized = plan(tight.model_copy(update={"context_tokens": 400_000}), QWEN3_8B)
    assert sized.changes
    assert not [c for c in sized.changes if c.startswith("kv_cache")]


def test_a_cpu_has_no_larger_kind() -> None:
    """There the machine is what it is."""
    small = catalog.load("smollm2-135m-cpu").model_copy(update={"context_tokens": 8192})
    kv_cache = small.kv_cache.model_copy(update={"memory_bytes": 2**26})
    sized = plan(small.model_copy(update={"kv_cache": kv_cache}), KNOWN[small.model.source]["config"])
    assert [c.split(":")[0] for c in sized.changes] == ["context_tokens", "kv_cache.memory_bytes"]


def test_models_of_another_kind_are_refused() -> None:
    """A number that would be wrong is worse than none."""
    for config in (
        {**QWEN3_8B, "layer_types": ["linear_attention"] * 36},
        {name: value for name, value in QWEN3_8B.items() if name != "hidden_size"},
        {},
    ):
        with pytest.raises(UnknownArchitecture):
            plan(spec(), config)


def test_text_numbers_of_a_multimodal_model_are_found() -> None:
    """They stand one level deeper."""
    nested = {"model_type": "some_vl", "text_config": QWEN3_8B}
    assert read(nested).parameters == read(QWEN3_8B).parameters
    assert known_config("nobody/nothing") is None


@given(
    tensor=st.sampled_from([1, 2, 4, 8]),
    block=st.sampled_from([16, 32, 64, 128]),
    context=st.integers(1, 40_960),
    gibs=st.integers(1, 60),
)
def test_more_memory_never_gives_fewer_calls(tensor: int, block: int, context: int, gibs: int) -> None:
    """Nor do shorter calls, nor more ranks; and blocks times their size never exceed the memory."""
    base = {"parallelism.tensor": tensor, "context_tokens": context}

    def sized(gib: int, changes: dict[str, Any]) -> Any:
        made = spec(
            {**base, **changes, "kv_cache": {"memory_bytes": gib * GIB, "block_size": block}},
        )
        return plan(made, QWEN3_8B)

    here = sized(gibs, {})
    assert here.kv_tokens * here.kv_bytes_per_token <= gibs * GIB
    assert here.calls_at_full_context <= sized(gibs + 1, {}).calls_at_full_context
    assert here.calls_at_full_context <= here.calls_at_typical_length
    assert (here.calls_at_full_context > 0) == ("fewer than one call" not in "".join(here.reasons))
    if tensor > 1:
        assert here.kv_tokens >= sized(gibs, {"parallelism.tensor": 1}).kv_tokens
