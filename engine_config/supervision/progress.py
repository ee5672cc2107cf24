"""Reads a vLLM worker's log lines as stages of its loading.

One line in, one `Progress` or None out; what is shown of it, and where, is the business of whoever asked.
The patterns are those of vLLM 0.32 and of `worker`. A newer vLLM that words its lines differently costs the
display, never readiness: that is found out by asking `/health`.
"""

import re
from dataclasses import dataclass
from enum import Enum


class Stage(Enum):
    """A stage of a worker's loading, worded as what the worker is doing."""

    FETCHING = "fetching the model"
    VERIFYING = "verifying the model's files"
    IMPORTING = "importing vLLM"
    CONFIGURING = "reading the model's configuration"
    STARTING = "starting engine processes"
    WEIGHTS = "loading weights"
    COMPILING = "compiling"
    KV_CACHE = "allocating the KV cache"
    CAPTURING = "capturing CUDA graphs"
    SERVING = "starting the server"


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a worker is; `percent` of the stage, where the line tells."""

    stage: Stage
    percent: int | None = None

    def __str__(self) -> str:
        return self.stage.value if self.percent is None else f"{self.stage.value} {self.percent}%"


# What stands before a message: `(EngineCore pid=42) INFO 11-21 11:48:31 [core.py:133] [backbone] `.
_PREFIX = re.compile(r"(?:\([^()]* pid=\d+\) )?(?:[A-Z]+ \d\d-\d\d \d\d:\d\d:\d\d \[[^\]]*:\d+\] )?(?:\[[\w.-]+\] )?")

# The first pattern that matches the beginning of the message tells the stage; a group `percent` its share.
_STAGES: tuple[tuple[re.Pattern[str], Stage], ...] = tuple(
    (re.compile(pattern), stage)
    for pattern, stage in (
        (r"fetching \S+$", Stage.FETCHING),
        (r"verifying \S", Stage.VERIFYING),
        (r"importing vLLM", Stage.IMPORTING),
        (r"non-default args: ", Stage.CONFIGURING),
        (r"Resolved architecture: ", Stage.CONFIGURING),
        (r"Initializing a V1 LLM engine ", Stage.STARTING),
        (r"Starting to load model ", Stage.WEIGHTS),
        (r"Prefetching checkpoint files: +(?P<percent>\d+)%", Stage.WEIGHTS),
        (r"(?:Multi-thread )?[Ll]oading [\w ]*shards(?: \(eager\))?: +(?P<percent>\d+)%", Stage.WEIGHTS),
        (r"Loading safetensors using .*?: +(?P<percent>\d+)%", Stage.WEIGHTS),
        (r"Warming up model for the compilation", Stage.COMPILING),
        (r"Starting torch\.compile", Stage.COMPILING),
        (r"Dynamo bytecode transform time", Stage.COMPILING),
        (r"Compiling a graph for compile range", Stage.COMPILING),
        (r"Directly load (?:AOT compilation|the compiled graph)", Stage.COMPILING),
        (r"Compile and warming up model for size", Stage.COMPILING),
        (r"JIT kernel warmup starting", Stage.COMPILING),
        (r"Explicitly set \(.*\) GiB for KV cache", Stage.KV_CACHE),
        (r"Available KV cache memory: ", Stage.KV_CACHE),
        (r"[\w+ ]+ KV cache size: [\d,]+ tokens", Stage.KV_CACHE),
        (r"Capturing CUDA graphs[^:]*: +(?P<percent>\d+)%", Stage.CAPTURING),
        (r"Graph capturing finished", Stage.CAPTURING),
        (r"Starting vLLM server on ", Stage.SERVING),
    )
)


def read(line: str) -> Progress | None:
    """The stage that a log line tells of; None for a line that tells of none."""
    prefix = _PREFIX.match(line)
    message = line[prefix.end() :] if prefix else line
    for pattern, stage in _STAGES:
        if found := pattern.match(message):
            percent = found.groupdict().get("percent")
            return Progress(stage, int(percent) if percent is not None else None)
    return None
