"""Does it fit, how many KV blocks, how many calls, and what to change if not: pure arithmetic over `memory`.

Every proposed change has been sized itself, so what it promises is what it gives. Reads no file: the caller
brings the model's configuration.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from engine_config.accelerators import larger
from engine_config.architecture import Architecture, read
from engine_config.memory import FP8_KV_DTYPES, Memory, gib, kv_bytes_per_token, memory
from engine_config.spec import EngineSpec, Quantization

# Median of prompt plus answer in the public 2023 Azure trace of a conversation service (19,366 calls).
TYPICAL_TOKENS = 1_412


@dataclass(frozen=True, slots=True)
class Plan:
    """What a spec gives on its accelerator. Memory is per device, counts are per worker.

    Attributes:
        devices: Accelerators that one worker takes.
        parameters: Parameters of the whole model.
        kv_bytes_per_token: Per device; zero for a model without a KV cache.
        kv_blocks: Blocks that vLLM will allocate, the one that it keeps for itself included.
        kv_tokens: Tokens in those blocks.
        calls_at_full_context: Calls of `context_tokens` that the cache holds at once.
        calls_at_typical_length: Calls of `typical_tokens` that the cache holds at once.
        reasons: Why it does not fit; empty when it does.
        changes: Single changes that make it fit; empty when it fits or none does.
        notes: What the numbers leave out.
    """

    devices: int
    memory: Memory
    parameters: int
    kv_bytes_per_token: int
    kv_blocks: int
    kv_tokens: int
    calls_at_full_context: int
    calls_at_typical_length: int
    typical_tokens: int
    reasons: tuple[str, ...]
    changes: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def fits(self) -> bool:
        """Whether the worker will start: it does when one call of full length has room."""
        return not self.reasons


def plan(
    spec: EngineSpec,
    model_config: Mapping[str, Any],
    weights_bytes: int | None = None,
    *,
    host_memory_bytes: int | None = None,
    typical_tokens: int = TYPICAL_TOKENS,
) -> Plan:
    """Size a spec.

    Args:
        spec: What would be started.
        model_config: The model's config.json.
        weights_bytes: Size of the weight files where they are at hand; counted from the shape otherwise.
        host_memory_bytes: Memory of the machine, used for a CPU only; None when it is not known.
        typical_tokens: Prompt plus answer of a usual call.

    Raises:
        UnknownArchitecture: The configuration is of a kind that is not counted.
    """
    shape = read(model_config)

    def size(candidate: EngineSpec) -> Plan:
        parts = memory(candidate, shape, weights_bytes, host_memory_bytes)
        return _sized(candidate, shape, parts, min(typical_tokens, candidate.context_tokens))

    sized = size(spec)
    if sized.fits:
        return sized
    tried = ((change, size(candidate)) for change, candidate in _candidates(spec, shape, sized))
    return replace(
        sized,
        changes=tuple(f"{change} ({_gain(result)})" for change, result in tried if result.fits),
    )


def _sized(spec: EngineSpec, shape: Architecture, parts: Memory, typical_tokens: int) -> Plan:
    per_token = kv_bytes_per_token(spec, shape)
    block, ranks = spec.kv_cache.block_size, spec.parallelism.data
    blocks = parts.kv_cache // (per_token * block) if per_token else 0

    def calls(tokens: int) -> int:
        if not per_token:
            return spec.scheduling.max_sequences * ranks
        # vLLM never hands out one of its blocks.
        return max(0, blocks - 1) // math.ceil(tokens / block) * ranks

    full = calls(spec.context_tokens)
    return Plan(
        devices=spec.parallelism.accelerators,
        memory=parts,
        parameters=shape.parameters,
        kv_bytes_per_token=per_token,
        kv_blocks=blocks * ranks,
        kv_tokens=blocks * block * ranks,
        calls_at_full_context=full,
        calls_at_typical_length=calls(typical_tokens),
        typical_tokens=typical_tokens,
        reasons=tuple(_reasons(spec, parts, full, blocks * block)),
        changes=(),
        notes=tuple(_notes(spec, shape, parts)),
    )


def _reasons(spec: EngineSpec, parts: Memory, full_calls: int, kv_tokens: int) -> Iterator[str]:
    if parts.device and parts.total > parts.device:
        yield f"{gib(parts.total)} are needed, a device has {gib(parts.device)}"
    elif parts.kv_cache == 0:
        budget = int(parts.device * (spec.kv_cache.memory_fraction or 0))
        yield f"no memory is left for the KV cache: {gib(parts.without_kv)} of {gib(budget)} are taken"
    elif full_calls == 0:
        yield f"the KV cache holds {kv_tokens:,} tokens, fewer than one call of {spec.context_tokens:,}"


def _notes(spec: EngineSpec, shape: Architecture, parts: Memory) -> Iterator[str]:
    if shape.window:
        yield (
            f"{shape.windowed_layers} of {shape.layers} layers keep only {shape.window:,} tokens: "
            "more calls fit than counted here"
        )
    if spec.speculation and spec.speculation.model:
        yield "the draft model's weights and KV cache are not counted"
    if spec.multimodal:
        yield "the encoders of images, video and audio are not counted"
    if parts.device == 0:
        yield f"the machine needs {gib(parts.total)} of memory"


def _gain(result: Plan) -> str:
    calls = result.calls_at_full_context
    return f"{calls:,} {'call' if calls == 1 else 'calls'} at full context"


def _candidates(spec: EngineSpec, shape: Architecture, sized: Plan) -> Iterator[tuple[str, EngineSpec]]:
    """Single changes, the least intrusive first; whether they are enough is for the caller to see."""
    block, per_token = spec.kv_cache.block_size, sized.kv_bytes_per_token
    shorter = (sized.kv_blocks // spec.parallelism.data - 1) * block
    if block <= shorter < spec.context_tokens:
        yield f"context_tokens: {shorter}", _with(spec, context_tokens=shorter)
    if spec.kv_cache.memory_bytes is not None:
        needed = (math.ceil(spec.context_tokens / block) + 1) * block * per_token
        yield f"kv_cache.memory_bytes: {needed}", _with_kv(spec, memory_bytes=needed)
    elif (spec.kv_cache.memory_fraction or 0) < 0.95:
        yield "kv_cache.memory_fraction: 0.95", _with_kv(spec, memory_fraction=0.95)
    if spec.kv_cache.dtype not in FP8_KV_DTYPES:
        yield "kv_cache.dtype: fp8", _with_kv(spec, dtype="fp8")
    if spec.quantization is None and spec.accelerator.device.computes_fp8:
        fp8 = Quantization(method="fp8_per_tensor")
        yield "quantization.method: fp8_per_tensor", _with(spec, quantization=fp8)
    if spec.accelerator.device.is_gpu:
        yield from _more_hardware(spec, shape)


def _more_hardware(spec: EngineSpec, shape: Architecture) -> Iterator[tuple[str, EngineSpec]]:
    for tensor in (2, 4, 8):
        if tensor > spec.parallelism.tensor and shape.heads % tensor == 0:
            parallelism = spec.parallelism.model_copy(update={"tensor": tensor})
            yield f"parallelism.tensor: {tensor}", _with(spec, parallelism=parallelism)
    for kind in larger(spec.accelerator.kind):
        accelerator = spec.accelerator.model_copy(update={"kind": kind})
        yield f"accelerator.kind: {kind}", _with(spec, accelerator=accelerator)


def _with(spec: EngineSpec, **changes: Any) -> EngineSpec:
    return spec.model_copy(update=changes)


def _with_kv(spec: EngineSpec, **changes: Any) -> EngineSpec:
    return _with(spec, kv_cache=spec.kv_cache.model_copy(update=changes))
