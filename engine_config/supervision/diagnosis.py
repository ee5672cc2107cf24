"""Why a worker died, read from its last lines, and what helps.

One table from what vLLM, PyTorch and the kernel say to a cause and a remedy in our words. What is not in the
table is told in the worker's own words; whether to start again is decided in `restarts`.
"""

import os
import re
import signal
from collections.abc import Sequence
from dataclasses import dataclass

LONGEST_WORDS = 300


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What a worker died of.

    Attributes:
        cause: A clause without a full stop: `the disk is full`.
        remedy: What to do, as an instruction; where nothing is known, where to look.
        lasting: Whether starting again unchanged is useless.
        words: The line that told, as the worker wrote it; empty where none did.
    """

    cause: str
    remedy: str
    lasting: bool
    words: str = ""

    def __str__(self) -> str:
        return f"{self.cause}: {self.words}" if self.words else self.cause


@dataclass(frozen=True, slots=True)
class _Symptom:
    pattern: str
    cause: str
    remedy: str
    lasting: bool


# In the order in which they are looked for, all lines for the first one before the second: a root cause comes
# before what it looks like elsewhere.
_SYMPTOMS = (
    _Symptom(
        r"No module named 'vllm'",
        "vLLM is not installed",
        "install one engine: pip install 'pagegate[cpu]', or 'pagegate[gpu]' on a machine with NVIDIA GPUs",
        lasting=True,
    ),
    _Symptom(
        r"SafetensorError|Error while deserializing header|in parse_safetensors_file_metadata"
        r"|is not a valid JSON file|does not have the checksum of|is damaged: |is incomplete: ",
        "a file of the model is damaged",
        "remove the model's folder and start again, so that it is fetched or made anew",
        lasting=True,
    ),
    _Symptom(
        r"Repo id must be in the form|is not a local folder and is not a valid model identifier"
        r"|does not appear to have a file named|Can't load the configuration of|holds no model: ",
        "the model was not found",
        "set model.source in the profile to a folder that exists, or to a hub id",
        lasting=True,
    ),
    _Symptom(
        r"GatedRepoError|401 Client Error|Access to model .* is restricted",
        "the model hub refuses access to the model",
        "accept the model's licence on the hub and set HF_TOKEN",
        lasting=True,
    ),
    _Symptom(
        r"Cannot find the requested files in the local cache|couldn't connect to 'https?://"
        r"|LocalEntryNotFoundError|OfflineModeIsEnabled|could not be fetched from the hub",
        "the model could not be fetched from the hub",
        "fetch it where there is a network, and set model.source in the profile to its folder",
        lasting=True,
    ),
    _Symptom(
        r"requires you to execute custom code|asks for code of its own|files that can run code when read",
        "the model brings code of its own, which is never run",
        "serve a model whose architecture vLLM knows, from safetensors files",
        lasting=True,
    ),
    _Symptom(
        r"Bfloat16 is only supported on GPUs|dtype .* is not supported|not implemented for '\w+'",
        "this hardware cannot compute in the profile's dtype",
        "set dtype to float16 in the profile (float32 on a CPU)",
        lasting=True,
    ),
    _Symptom(
        r"quantization.* is not supported|quantization method .* not supported|Minimum capability:",
        "this hardware cannot compute the profile's quantization",
        "choose another quantization; `python -m engine_config check PROFILE` says which",
        lasting=True,
    ),
    _Symptom(
        r"User-specified max_model_len .* is greater than the derived",
        "the profile wants a longer context than the model has",
        "lower context_tokens in the profile",
        lasting=True,
    ),
    _Symptom(
        r"No available memory for the cache blocks|cache is needed, which is larger than the available",
        "the KV cache does not fit beside the weights",
        "lower context_tokens, or raise kv_cache.memory_fraction or memory_bytes in the profile",
        lasting=True,
    ),
    _Symptom(
        r"Free memory on device .* is less than desired",
        "the GPU's memory is in use by somebody else",
        "see by whom with nvidia-smi, choose other GPUs with CUDA_VISIBLE_DEVICES, or lower "
        "kv_cache.memory_fraction in the profile",
        lasting=False,
    ),
    _Symptom(
        r"OutOfMemoryError|CUDA out of memory|CUDA error: out of memory",
        "the GPU ran out of memory",
        "lower kv_cache.memory_fraction, scheduling.max_sequences or scheduling.max_batched_tokens in the profile",
        lasting=False,
    ),
    _Symptom(
        r"Available memory on node .* is less than|DefaultCPUAllocator|[Cc]annot allocate memory"
        r"|^MemoryError|std::bad_alloc",
        "the machine has too little free memory",
        "end what else uses memory, or lower kv_cache.memory_bytes in the profile",
        lasting=False,
    ),
    _Symptom(
        r"No space left on device|Errno 28\b",
        "the disk is full",
        "make room where the state folder and your cache folder are, and in /dev/shm",
        lasting=False,
    ),
    _Symptom(
        r"[Aa]ddress already in use|Errno 98\b|cannot listen on ",
        "its port was taken by another process",
        "end that process, or choose another port",
        lasting=False,
    ),
    _Symptom(
        r"Failed to infer device type|No CUDA GPUs are available|Found no NVIDIA driver"
        r"|driver on your system is too old|libcuda\.so\.1",
        "vLLM finds no GPU that it can use",
        "see whether nvidia-smi works, and whether the driver is new enough for this vLLM",
        lasting=True,
    ),
    _Symptom(
        r"Illegal instruction",
        "the processor lacks instructions that vLLM was built with",
        "use a machine with AVX2; AVX-512 is better",
        lasting=True,
    ),
    _Symptom(
        r"Too many open files",
        "the limit of open files was reached",
        "raise it: ulimit -n 65536",
        lasting=False,
    ),
)

# A warning that names an error is not that error: vLLM warns at every start of "Too many open files".
_HARMLESS = re.compile(r"(?:\([^()]*\) )?(?:INFO|DEBUG|WARNING) |.*\w*Warning: ")
_ERROR = re.compile(r"[\w.]*(?:Error|Exception)\b.*")
_CONSEQUENCE = re.compile(r"Engine core initialization failed|EngineDeadError")
_PREFIX = re.compile(r"^(?:\([^()]* pid=\d+\) )?(?:[A-Z]+ \d\d-\d\d \d\d:\d\d:\d\d \[[^\]]*:\d+\] )?")


def diagnose(lines: Sequence[str], status: int | None) -> Diagnosis:
    """Why a worker with these last lines ended; `status` is its exit status, -N after signal N."""
    messages = [_PREFIX.sub("", line).strip() for line in lines if not _HARMLESS.match(line)]
    errors = [message for message in messages if _ERROR.match(message)]
    for symptom in _SYMPTOMS:
        # An error says it better than the line of source code in its traceback.
        for message in (*errors, *messages):
            if re.search(symptom.pattern, message):
                return Diagnosis(symptom.cause, symptom.remedy, symptom.lasting, _cut(message))
    if status is not None and status in (-signal.SIGILL, 128 + signal.SIGILL):
        return diagnose(["Illegal instruction"], None)
    if status is not None and status in (-signal.SIGKILL, 128 + signal.SIGKILL):
        return Diagnosis(
            "it was killed",
            "if nobody did it, the kernel ran out of memory (dmesg tells): end what else uses memory, or "
            "lower kv_cache.memory_bytes in the profile",
            lasting=False,
        )
    if status == os.EX_CONFIG:  # what a worker says of a profile or a model that will never do
        words = _cut(messages[-1]) if messages else ""
        return Diagnosis("its profile or its model cannot be used", "mend what it says", True, words)
    roots = [message for message in errors if not _CONSEQUENCE.search(message)]
    words = (roots or errors or messages or [""])[-1]
    return Diagnosis(_ending(status), "its log tells more", lasting=False, words=_cut(words))


def _cut(words: str) -> str:
    return words if len(words) <= LONGEST_WORDS else f"{words[:LONGEST_WORDS]} ..."


def _ending(status: int | None) -> str:
    if status is None:
        return "it ended"
    if status < 0:
        return f"it was ended by {signal.Signals(-status).name}"
    return f"it ended with exit status {status}"
