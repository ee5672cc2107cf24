"""What makes a spec impossible or unwise for the model that it names: one function a rule.

Asked by `rules.check` where the architecture is known: shipped numbers, or a folder's own config.json.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from engine_config.architecture import Architecture
from engine_config.memory import gib, kv_bytes_per_token
from engine_config.problems import Problem, warning
from engine_config.spec import EngineSpec
from engine_config.vllm_options import MAX_GPUS_PER_MACHINE

ModelRule = Callable[[EngineSpec, Architecture], Iterable[Problem]]


def context_is_trained(spec: EngineSpec, shape: Architecture) -> Iterator[Problem]:
    """vLLM refuses positions that the model was not trained on."""
    if spec.context_tokens > shape.max_context:
        yield Problem(
            "context_tokens",
            f"the model reads at most {shape.max_context} (was {spec.context_tokens})",
            f"use {shape.max_context} or less",
        )


def tensor_divides_heads(spec: EngineSpec, shape: Architecture) -> Iterator[Problem]:
    """Attention heads are dealt out whole."""
    tensor = spec.parallelism.tensor
    if shape.heads % tensor:
        allowed = [str(n) for n in range(1, MAX_GPUS_PER_MACHINE + 1) if shape.heads % n == 0]
        yield Problem(
            "parallelism.tensor",
            f"must divide the model's {shape.heads} attention heads (was {tensor})",
            f"one of {', '.join(allowed)}",
        )
    elif not shape.latent and tensor > shape.kv_heads:
        yield warning(
            "parallelism.tensor",
            f"is above the model's {shape.kv_heads} KV heads: the cache is held twice over (was {tensor})",
            f"{shape.kv_heads} or less uses the memory fully",
        )


def stages_have_layers(spec: EngineSpec, shape: Architecture) -> Iterator[Problem]:
    """A stage needs at least one layer."""
    if spec.parallelism.pipeline > shape.layers:
        yield Problem(
            "parallelism.pipeline",
            f"the model has {shape.layers} layers (was {spec.parallelism.pipeline})",
            "use fewer stages",
        )


def experts_are_there(spec: EngineSpec, shape: Architecture) -> Iterator[Problem]:
    """Only a mixture has experts to deal out, and data ranks that share them."""
    if shape.experts:
        return
    if spec.parallelism.expert:
        yield Problem("parallelism.expert", "the model has no experts (was true)", "set it to false")
    if spec.parallelism.data > 1:
        yield warning(
            "parallelism.data",
            f"ranks of a model without experts share nothing (was {spec.parallelism.data})",
            "use replicas, which fail and restart one by one",
        )


def checkpoint_is_quantized_so(spec: EngineSpec, shape: Architecture) -> Iterator[Problem]:
    """vLLM compares the spec with what the checkpoint says of itself."""
    stored, asked = shape.quantization, spec.quantization
    if stored is None:
        if asked is not None and not asked.happens_at_load:
            yield Problem(
                "quantization.method",
                f"the checkpoint is not quantized (was {asked.method})",
                "use fp8_per_tensor to quantize while loading, or another checkpoint",
            )
    elif asked is None:
        yield Problem("quantization", f"the checkpoint is quantized with {stored}", f"method: {stored}")
    elif asked.method != stored:
        yield Problem(
            "quantization.method",
            f"the checkpoint is quantized with {stored} (was {asked.method})",
            f"use {stored}",
        )


def cache_holds_a_call(spec: EngineSpec, shape: Architecture) -> Iterator[Problem]:
    """vLLM refuses to start when the cache can't hold one call of full length."""
    size, block = spec.kv_cache.memory_bytes, spec.kv_cache.block_size
    per_token = kv_bytes_per_token(spec, shape)
    if size is None or not per_token:
        return
    tokens = (size // (per_token * block) - 1) * block
    if tokens < spec.context_tokens:
        needed = (-(-spec.context_tokens // block) + 1) * block * per_token
        yield Problem(
            "kv_cache.memory_bytes",
            f"holds {max(0, tokens)} tokens, context_tokens is {spec.context_tokens} (was {gib(size)})",
            f"at least {needed} bytes ({gib(needed)}), or a shorter context",
        )


MODEL_RULES: tuple[ModelRule, ...] = (
    context_is_trained,
    tensor_divides_heads,
    stages_have_layers,
    experts_are_there,
    checkpoint_is_quantized_so,
    cache_holds_a_call,
)
