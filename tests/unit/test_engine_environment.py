"""What a worker may be given, and what it keeps of its parent's environment."""

from __future__ import annotations

import pytest

from engine_config.environment import inherited, reserved_reason


@pytest.mark.parametrize(
    ("name", "because"),
    [
        ("VLLM_ALLOW_INSECURE_SERIALIZATION", "run code"),
        ("VLLM_SERVER_DEV_MODE", "opens routes"),
        ("VLLM_ALLOW_RUNTIME_LORA_UPDATING", "load files"),
        ("VLLM_DEBUG_LOG_API_SERVER_RESPONSE", "log"),
        ("LD_PRELOAD", "other code"),
        ("CUDA_VISIBLE_DEVICES", "assigned"),
        ("VLLM_CPU_KVCACHE_SPACE", "kv_cache.memory_bytes"),
        ("HF_TOKEN", "secret"),
        ("VLLM_API_KEY", "secret"),
        ("AWS_SECRET_ACCESS_KEY", "secret"),
        ("A=B", "not the name"),
        ("", "not the name"),
    ],
)
def test_a_profile_may_not_set_it(name: str, because: str) -> None:
    """What opens the engine, what a field says already, and what does not belong into a file."""
    assert because in (reserved_reason(name) or "")


@pytest.mark.parametrize("name", ["NCCL_DEBUG", "VLLM_LOGGING_LEVEL", "TOKENIZERS_PARALLELISM", "OMP_NUM_THREADS"])
def test_a_profile_may_set_it(name: str) -> None:
    """The rest is the operator's business."""
    assert reserved_reason(name) is None


def test_a_worker_inherits_the_machine_but_no_engine_settings_and_no_secrets_of_the_gateway() -> None:
    """A variable left over in a shell must not change what a profile says."""
    parent = {
        "PATH": "/bin",
        "HF_TOKEN": "t",
        "LD_PRELOAD": "libtcmalloc.so",
        "CUDA_VISIBLE_DEVICES": "1",
        "VLLM_CACHE_ROOT": "/c",
        "VLLM_SERVER_DEV_MODE": "1",
        "VLLM_CPU_KVCACHE_SPACE": "4",
        "VLLM_ATTENTION_BACKEND": "X",
        "PAGEGATE_BOOTSTRAP_KEY": "k",
    }
    assert inherited(parent) == {
        "PATH": "/bin",
        "HF_TOKEN": "t",
        "LD_PRELOAD": "libtcmalloc.so",
        "CUDA_VISIBLE_DEVICES": "1",
        "VLLM_CACHE_ROOT": "/c",
    }
