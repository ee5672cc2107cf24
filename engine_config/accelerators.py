"""What is known of the accelerators that a profile can name: memory and what the hardware computes.

Facts only; what they allow or forbid is decided in `rules`, what fits is computed in `plan`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

GIB = 1024**3

AcceleratorKind = Literal["cpu", "l4", "l40s", "a100-40", "a100-80", "h100", "h200", "b200"]


@dataclass(frozen=True, slots=True)
class Device:
    """One device of a kind.

    Attributes:
        name: As its maker writes it.
        memory_bytes: What CUDA reports as total, rounded down to a whole GiB (less than the printed size:
            part of it is reserved for error correction and the driver). Zero for a CPU, whose memory is the
            machine's.
        capability: CUDA compute capability; (0, 0) for a CPU.
        kubernetes_product: Value of the node label `nvidia.com/gpu.product` set by NVIDIA's feature
            discovery; empty for a CPU.
    """

    name: str
    memory_bytes: int
    capability: tuple[int, int]
    kubernetes_product: str = ""

    @property
    def is_gpu(self) -> bool:
        return self.memory_bytes > 0

    @property
    def computes_fp8(self) -> bool:
        """Whether the tensor cores multiply in FP8 (Ada and later); older ones only store it."""
        return self.capability >= (8, 9)

    @property
    def attends_in_fp8(self) -> bool:
        """Whether vLLM's default attention reads an FP8 KV cache (FlashAttention 3, or FlashInfer on
        Blackwell); elsewhere a slower backend takes over."""
        return self.capability >= (9, 0)


DEVICES: Mapping[AcceleratorKind, Device] = {
    "cpu": Device("CPU", 0, (0, 0)),
    "l4": Device("NVIDIA L4", 22 * GIB, (8, 9), "NVIDIA-L4"),
    "a100-40": Device("NVIDIA A100 40GB", 39 * GIB, (8, 0), "NVIDIA-A100-SXM4-40GB"),
    "l40s": Device("NVIDIA L40S", 44 * GIB, (8, 9), "NVIDIA-L40S"),
    "a100-80": Device("NVIDIA A100 80GB", 79 * GIB, (8, 0), "NVIDIA-A100-SXM4-80GB"),
    "h100": Device("NVIDIA H100 80GB", 79 * GIB, (9, 0), "NVIDIA-H100-80GB-HBM3"),
    "h200": Device("NVIDIA H200", 139 * GIB, (9, 0), "NVIDIA-H200"),
    "b200": Device("NVIDIA B200", 178 * GIB, (10, 0), "NVIDIA-B200"),
}


def larger(kind: AcceleratorKind) -> list[AcceleratorKind]:
    """Kinds with more memory than this one, smallest first."""
    bigger = [k for k, device in DEVICES.items() if device.memory_bytes > DEVICES[kind].memory_bytes]
    return sorted(bigger, key=lambda k: DEVICES[k].memory_bytes)
