"""Bytes on one device, by what they are for.

Exact where the model's shape decides (weights, KV cache per token), estimated where a kernel does
(activations, CUDA graphs, the driver's own memory). What follows from the bytes is for `plan`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from engine_config.accelerators import GIB
from engine_config.architecture import Architecture, LayerParameters
from engine_config.spec import EngineSpec, Quantization

MIB = 1024**2

# Estimates, each rounded up from what vLLM reports for single models when it starts.
CUDA_CONTEXT_BYTES = 640 * MIB  # driver, cuBLAS and attention workspaces of one process
COLLECTIVES_BYTES = 1 * GIB  # NCCL channels and all-reduce buffers, once a model is cut
CUDA_GRAPHS_BYTES = 768 * MIB  # full and piecewise graphs of the default capture sizes
# API server, engine core and worker each import torch: 3.8 GB resident for a worker with 0.27 GB of weights
# and 1 GiB of KV cache, measured with vLLM 0.32 on x86-64.
CPU_PROCESSES_BYTES = 2_350 * MIB

FP8_KV_DTYPES = frozenset({"fp8", "fp8_e4m3", "fp8_e5m2"})
_DTYPE_BYTES: Mapping[str, int] = {"bfloat16": 2, "float16": 2, "float32": 4}


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes on the fullest device; on a CPU, in the machine.

    Attributes:
        kv_cache: What the spec gives the KV cache, or what its fraction leaves.
        device: What the device has; zero when that is not known.
    """

    weights: int
    adapters: int
    activations: int
    graphs: int
    overhead: int
    kv_cache: int
    device: int

    @property
    def without_kv(self) -> int:
        """Everything but the KV cache."""
        return self.weights + self.adapters + self.activations + self.graphs + self.overhead

    @property
    def total(self) -> int:
        """Everything."""
        return self.without_kv + self.kv_cache


def memory(spec: EngineSpec, shape: Architecture, weights_bytes: int | None, host_memory_bytes: int | None) -> Memory:
    """What a spec puts on its fullest device.

    Args:
        spec: What would be started.
        shape: The model's architecture.
        weights_bytes: Size of all weight files; None counts them from the shape.
        host_memory_bytes: The machine's memory, used for a CPU only; None when it is not known.
    """
    device = spec.accelerator.device
    weights = weight_bytes(spec, shape)
    if weights_bytes is not None and not (spec.quantization and spec.quantization.happens_at_load):
        weights = math.ceil(weights_bytes / (spec.parallelism.tensor * spec.parallelism.pipeline))
    collectives = COLLECTIVES_BYTES if spec.parallelism.accelerators > 1 else 0
    taken = Memory(
        weights=weights,
        adapters=adapter_bytes(spec, shape),
        activations=activation_bytes(spec, shape),
        graphs=CUDA_GRAPHS_BYTES if device.is_gpu and not spec.eager else 0,
        overhead=CUDA_CONTEXT_BYTES + collectives if device.is_gpu else CPU_PROCESSES_BYTES,
        kv_cache=0,
        device=device.memory_bytes if device.is_gpu else host_memory_bytes or 0,
    )
    given, fraction = spec.kv_cache.memory_bytes, spec.kv_cache.memory_fraction
    left = max(0, int(taken.device * (fraction or 0)) - taken.without_kv)
    return replace(taken, kv_cache=left if given is None else given)


def weight_bytes(spec: EngineSpec, shape: Architecture) -> int:
    """Weights of the fullest pipeline stage, cut by tensor (or expert) parallelism.

    Embeddings, the output head, norms and routers keep the model's dtype under every quantization.
    """
    full = _DTYPE_BYTES[spec.dtype]
    linear = bytes_per_weight(spec.quantization) or full
    tensor, data = spec.parallelism.tensor, spec.parallelism.data

    def layer_bytes(layer: LayerParameters) -> float:
        return (
            linear * (layer.heads + layer.feed_forward) / tensor
            + linear * layer.kv_heads / min(tensor, shape.kv_heads)
            + linear * layer.experts / (tensor * data if spec.parallelism.expert else tensor)
            + full * (layer.whole + layer.norms)
        )

    stage = math.ceil(shape.layers / spec.parallelism.pipeline)
    sparse = min(stage, shape.layers - shape.dense_layers)
    layers = sparse * layer_bytes(shape.layer(sparse=True)) if sparse else 0.0
    layers += (stage - sparse) * layer_bytes(shape.layer(sparse=False))
    return math.ceil(layers + full * (shape.embedding_parameters / tensor + shape.hidden))


def bytes_per_weight(quantization: Quantization | None) -> float | None:
    """Bytes of a quantized weight with its share of the scales; None when weights keep the model's dtype."""
    if quantization is None:
        return None
    if quantization.bits == 8:
        return 1.0
    if quantization.method == "mxfp4":
        return 0.5 + 1 / 32  # one 8-bit scale per 32 weights
    return 0.5 + 2.5 / 128  # a 16-bit scale and a 4-bit zero point per group of 128 weights


def kv_bytes_per_token(spec: EngineSpec, shape: Architecture) -> int:
    """What one token takes in the KV cache of one device; zero for a model that keeps none.

    Keys and values are cut by KV heads, and repeated where there are fewer heads than ranks; the single
    vector of latent attention is kept whole by every rank.
    """
    if not shape.causal:
        return 0
    size = 1 if spec.kv_cache.dtype in FP8_KV_DTYPES else _DTYPE_BYTES[spec.dtype]
    layers = math.ceil(shape.layers / spec.parallelism.pipeline)
    if shape.latent:
        return layers * shape.latent.cached_dim * size
    kv_heads = max(1, shape.kv_heads // spec.parallelism.tensor)
    return layers * 2 * kv_heads * shape.head_dim * size


def activation_bytes(spec: EngineSpec, shape: Architecture) -> int:
    """Estimate of a step's peak: a few hidden states, one feed-forward block, and the logits."""
    width = shape.intermediate / spec.parallelism.tensor
    if shape.experts:
        width = shape.experts.active * (shape.experts.intermediate + shape.hidden)
    step = spec.scheduling.max_batched_tokens * (6 * shape.hidden + 3 * width) * _DTYPE_BYTES[spec.dtype]
    # Logits are compared and sampled in float32, in up to three copies.
    logits = 3 * 4 * spec.scheduling.max_sequences * shape.vocabulary if spec.task == "generate" else 0
    return math.ceil(step + logits)


def adapter_bytes(spec: EngineSpec, shape: Architecture) -> int:
    """Buffers set aside for adapters of the largest rank on every attention and feed-forward matrix."""
    if spec.lora is None:
        return 0
    attention = (2 * shape.heads + 2 * shape.kv_heads) * shape.head_dim + 4 * shape.hidden
    per_rank = shape.layers * (attention + 3 * (shape.hidden + shape.intermediate)) * _DTYPE_BYTES[spec.dtype]
    parts = spec.parallelism.tensor * spec.parallelism.pipeline
    return math.ceil(spec.lora.max_adapters * spec.lora.max_rank * per_rank / parts)


def gib(size: int) -> str:
    """Bytes for people."""
    return f"{size / GIB:.1f} GiB" if size >= GIB / 10 else f"{size / MIB:.0f} MiB"
