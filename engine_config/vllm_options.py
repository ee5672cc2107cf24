"""What vLLM 0.32 accepts, as plain values, so that checking a spec never imports vLLM.

`tests/real/test_engine_arguments.py` holds every value here to the installed package.
"""

from __future__ import annotations

# vllm.config.lora.MaxLoRARanks
LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)

# Kernel block sizes, powers of two. On NVIDIA every attention backend takes multiples of 16 (FlashAttention,
# Triton, FlexAttention), FlashInfer 16, 32 and 64. CPU_ATTN takes multiples of 32, and a worker with 16 dies
# once its weights are loaded ("No common block size").
GPU_BLOCK_SIZES = (16, 32, 64, 128)
CPU_BLOCK_SIZES = (32, 64, 128)

# CPUAttentionBackend.supported_kv_cache_dtypes
CPU_KV_DTYPES = ("auto", "fp8", "fp8_e4m3", "fp8_e5m2")

# get_supported_act_dtypes() of the quantization configurations that are not listed take float32 too.
HALF_PRECISION_ONLY = (
    "fp8",
    "awq",
    "gptq",
    "mxfp4",
    "fp8_per_tensor",
    "fp8_per_channel",
    "fp8_per_block",
)

# A worker spans one machine; vLLM's tensor parallel groups are not larger than one either.
MAX_GPUS_PER_MACHINE = 8

# vllm.tool_parsers.ToolParserManager
_TOOL_PARSERS = """
apertus cohere_command3 cohere_command4 deepseek_v3 deepseek_v31 deepseek_v32 deepseek_v4 deepseek_v41 dots
ernie45 functiongemma gemma4 gigachat3 glm45 glm47 granite granite-20b-fc granite4 hermes hf hunyuan_a13b hy_v3
hy_v4 inkling internlm jamba k2_horizon kimi_k2 kimi_k3 lfm2 ling3 llama3_json llama4_json llama4_pythonic
longcat mimo minicpm5 minimax_m2 minimax_m3 mistral muse_glimmer olmo3 openai phi4_mini_json plamo3 poolside_v1
pythonic qwen3_coder qwen3_json qwen3_xml seed_oss step3 step3p5 xlam
"""
TOOL_PARSERS = frozenset(_TOOL_PARSERS.split())

# vllm.reasoning.ReasoningParserManager
_REASONING_PARSERS = """
cohere_command3 cohere_command4 deepseek_r1 deepseek_v3 deepseek_v4 deepseek_v41 ernie45 gemma4 glm45 glm47
granite granite_thinking_parser hf holo2 hunyuan_a13b hy_v3 hy_v4 inkling k2_horizon kimi_k2 kimi_k3 ling3 mimo
minicpmv minimax_m2 minimax_m2_append_think minimax_m3 mistral muse_glimmer nemotron_v3 olmo3 openai_gptoss
plamo3 poolside_v1 qwen3 seed_oss step3 step3p5
"""
REASONING_PARSERS = frozenset(_REASONING_PARSERS.split())
