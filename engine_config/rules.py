"""What makes a spec impossible or unwise by itself: one function a rule, all of them asked at once.

Facts about vLLM were read in version 0.32 and are kept in `vllm_options`. Rules that need the model's shape
are in `model_rules`; none of them reads a file.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator

from engine_config import vllm_options as vllm
from engine_config.architecture import Architecture
from engine_config.environment import reserved_reason
from engine_config.model_rules import MODEL_RULES
from engine_config.problems import Problem, Severity, warning
from engine_config.spec import Chat, EngineSpec, Source

Rule = Callable[[EngineSpec], Iterable[Problem]]


def check(spec: EngineSpec, shape: Architecture | None = None) -> list[Problem]:
    """Every problem of a spec, errors first; empty when there is nothing to say.

    Args:
        spec: What would be started.
        shape: The model's architecture; None asks only what the spec itself can answer.
    """
    found = [problem for rule in RULES for problem in rule(spec)]
    if shape is not None:
        found += [problem for rule in MODEL_RULES for problem in rule(spec, shape)]
    return sorted(found, key=lambda problem: problem.severity is Severity.WARNING)


def _or(values: Iterable[object]) -> str:
    return ", ".join(str(value) for value in values)


def model_is_pinned(spec: EngineSpec) -> Iterator[Problem]:
    """A hub model without a commit changes when its owner pushes."""
    revision = spec.model.revision
    if spec.model.kind is not Source.HUB:
        if revision is not None:
            yield warning("model.revision", f"has no meaning for a {spec.model.kind} (was {revision})", "remove it")
    elif revision is None:
        yield warning("model.revision", "is not given, so the weights may change", "name the commit to serve")
    elif not re.fullmatch(r"[0-9a-f]{40}", revision):
        yield warning("model.revision", f"names a branch or tag, which moves (was {revision})", "name a commit")


def checksum_says_something(spec: EngineSpec) -> Iterator[Problem]:
    """A checksum section holds a manifest or files, not neither and not both."""
    checksum = spec.model.checksum
    if checksum is None:
        return
    if checksum.manifest is not None and checksum.files:
        yield Problem("model.checksum", "gives a manifest and files", "keep one of the two")
    if checksum.manifest is None and not checksum.files:
        yield Problem("model.checksum", "names nothing to check", "give manifest or files, or leave it out")


def names_are_distinct(spec: EngineSpec) -> Iterator[Problem]:
    """A name that a call may use means one thing."""
    names = list(spec.served_names)
    for name in sorted({n for n in names if names.count(n) > 1}):
        yield Problem("served_names", f"{name} is listed twice", "list each name once")
    for name in sorted(set(spec.lora.adapters if spec.lora else ()) & set(names)):
        yield Problem(f"lora.adapters.{name}", "is also a served name", "give the adapter another name")


def worker_fits_one_machine(spec: EngineSpec) -> Iterator[Problem]:
    """A worker is one process group on one machine."""
    count = spec.parallelism.accelerators
    if count > vllm.MAX_GPUS_PER_MACHINE:
        yield Problem(
            "parallelism",
            f"needs {count} accelerators, a machine has at most {vllm.MAX_GPUS_PER_MACHINE}",
            "use smaller tensor, pipeline or data, and more replicas",
        )


def cpu_is_not_split(spec: EngineSpec) -> Iterator[Problem]:
    """Ranks on a CPU need a memory node or a list of cores each, and stages only add latency."""
    if spec.accelerator.device.is_gpu:
        return
    if spec.parallelism.pipeline > 1:
        yield warning(
            "parallelism.pipeline",
            f"stages on one CPU only add latency (was {spec.parallelism.pipeline})",
            "use 1, and replicas for more throughput",
        )
    if spec.parallelism.tensor > 1 and spec.accelerator.cpu_cores == "auto":
        yield warning(
            "parallelism.tensor",
            f"vLLM wants one memory node per rank (was {spec.parallelism.tensor})",
            "check `lscpu`, or list the cores of each rank in accelerator.cpu_cores",
        )


def cores_match_ranks(spec: EngineSpec) -> Iterator[Problem]:
    """A list of cores has one part per rank, and only a CPU worker has one."""
    cores = spec.accelerator.cpu_cores
    if cores in ("auto", "nobind"):
        return
    if spec.accelerator.device.is_gpu:
        yield Problem("accelerator.cpu_cores", f"is for CPU workers (was {cores})", "remove it")
        return
    part = r"\d+(-\d+)?(,\d+(-\d+)?)*"
    if not re.fullmatch(rf"{part}(\|{part})*", cores):
        yield Problem("accelerator.cpu_cores", f"is not a list of cores (was {cores})", "write it as 0-3|4-7")
    elif cores.count("|") + 1 != spec.parallelism.accelerators:
        yield Problem(
            "accelerator.cpu_cores",
            f"lists cores of {cores.count('|') + 1} ranks, the worker has {spec.parallelism.accelerators}",
            "give one list per rank, separated by |",
        )


def quantization_says_its_bits(spec: EngineSpec) -> Iterator[Problem]:
    """compressed-tensors is a container: the plan needs to know what is in it."""
    quantization = spec.quantization
    if quantization is None:
        return
    if quantization.method == "compressed-tensors" and quantization.weight_bits is None:
        yield Problem("quantization.weight_bits", "is required for compressed-tensors", "4, or 8 for INT8 and FP8")
    method, bits = quantization.method, quantization.weight_bits
    fixed = {"awq": 4, "mxfp4": 4}.get(method, 8)
    if method not in ("compressed-tensors", "gptq") and bits not in (None, fixed):
        yield Problem("quantization.weight_bits", f"{method} has {fixed} bits (was {bits})", "remove it")


def quantization_suits_dtype(spec: EngineSpec) -> Iterator[Problem]:
    """Kernels of quantized weights compute in 16 bits."""
    quantization = spec.quantization
    if quantization and quantization.method in vllm.HALF_PRECISION_ONLY and spec.dtype == "float32":
        yield Problem(
            "dtype",
            f"must be bfloat16 or float16 with {quantization.method} (was {spec.dtype})",
            "use bfloat16",
        )


def fp8_weights_have_hardware(spec: EngineSpec) -> Iterator[Problem]:
    """Without FP8 units the weights are unpacked to 16 bits: memory is saved, time is not."""
    method = spec.quantization.method if spec.quantization else ""
    device = spec.accelerator.device
    if not method.startswith("fp8") or device.computes_fp8:
        return
    if device.is_gpu:
        yield warning(
            "quantization.method",
            f"an {device.name} stores FP8 but computes in 16 bits (was {method})",
            "expect less memory, not more speed; awq or compressed-tensors INT8 are faster here",
        )
    else:
        yield warning(
            "quantization.method",
            f"FP8 on a CPU is fast only with AMX (was {method})",
            "use compressed-tensors INT8, or no quantization",
        )


def block_size_is_allowed(spec: EngineSpec) -> Iterator[Problem]:
    """Attention kernels are built for certain block sizes."""
    size = spec.kv_cache.block_size
    allowed = vllm.GPU_BLOCK_SIZES if spec.accelerator.device.is_gpu else vllm.CPU_BLOCK_SIZES
    if size not in allowed:
        yield Problem("kv_cache.block_size", f"must be one of {_or(allowed)} (was {size})", f"use {allowed[0]}")


def kv_memory_is_said_once(spec: EngineSpec) -> Iterator[Problem]:
    """Two answers to one question, or none."""
    fraction, size = spec.kv_cache.memory_fraction, spec.kv_cache.memory_bytes
    if fraction is not None and size is not None:
        yield Problem(
            "kv_cache.memory_fraction",
            f"is given together with memory_bytes (were {fraction} and {size})",
            "keep memory_bytes to fix the cache, or memory_fraction to fill the device",
        )
    if fraction is None and size is None:
        yield Problem(
            "kv_cache.memory_fraction",
            "is required, unless memory_bytes is given",
            "memory_fraction: 0.9 on a GPU of its own, memory_bytes: 1GiB on a CPU",
        )


def kv_fraction_is_wise(spec: EngineSpec) -> Iterator[Problem]:
    """A little memory must stay free; on a CPU the rest of the machine lives in it."""
    fraction = spec.kv_cache.memory_fraction
    if fraction is None:
        return
    if not spec.accelerator.device.is_gpu:
        yield warning(
            "kv_cache.memory_fraction",
            f"takes that share of the whole machine's memory (was {fraction})",
            "give memory_bytes on a CPU",
        )
    elif fraction > 0.95:
        yield warning(
            "kv_cache.memory_fraction",
            f"leaves too little for allocations outside vLLM's view (was {fraction})",
            "stay at 0.95 or below",
        )


def kv_dtype_has_kernel(spec: EngineSpec) -> Iterator[Problem]:
    """The cache can only hold what attention can read."""
    dtype, device = spec.kv_cache.dtype, spec.accelerator.device
    if not device.is_gpu and dtype not in vllm.CPU_KV_DTYPES:
        yield Problem("kv_cache.dtype", f"must be one of {_or(vllm.CPU_KV_DTYPES)} on a CPU (was {dtype})", "use auto")
    if dtype == "fp8_e5m2" and spec.quantization and spec.quantization.method == "fp8":
        yield Problem("kv_cache.dtype", "vLLM refuses fp8_e5m2 with an FP8 checkpoint (was fp8_e5m2)", "use fp8")
    if device.is_gpu and dtype.startswith("fp8") and not device.attends_in_fp8:
        yield warning(
            "kv_cache.dtype",
            f"an {device.name} reads FP8 only through slower attention backends (was {dtype})",
            "use auto unless the cache is what limits you",
        )


def events_can_be_published(spec: EngineSpec) -> Iterator[Problem]:
    """Events tell of cached prefixes; each data rank has its own publisher."""
    if not spec.kv_cache.events:
        return
    if not spec.kv_cache.prefix_caching:
        yield Problem("kv_cache.events", "needs prefix_caching: there is nothing to tell otherwise", "set both")
    if spec.parallelism.data > 1:
        yield Problem(
            "kv_cache.events",
            f"vLLM publishes no events of data ranks over local sockets (data was {spec.parallelism.data})",
            "use replicas in place of parallelism.data, or set events: false",
        )


def step_holds_what_it_must(spec: EngineSpec) -> Iterator[Problem]:
    """A step decodes every sequence, and reads a prompt whole when it may not be cut."""
    step = spec.scheduling
    if step.max_batched_tokens < step.max_sequences:
        yield Problem(
            "scheduling.max_batched_tokens",
            f"must be at least max_sequences, {step.max_sequences} (was {step.max_batched_tokens})",
            "raise it, or lower max_sequences",
        )
    if not step.chunked_prefill and step.max_batched_tokens < spec.context_tokens:
        yield Problem(
            "scheduling.max_batched_tokens",
            f"must be at least context_tokens, {spec.context_tokens}, without chunked_prefill "
            f"(was {step.max_batched_tokens})",
            "set chunked_prefill: true, or raise it",
        )
    if not step.chunked_prefill and spec.task == "generate":
        yield warning(
            "scheduling.chunked_prefill",
            "vLLM 0.32 does not support generation without it (was false)",
            "set it to true",
        )
    if step.max_in_flight is not None and step.max_in_flight < step.max_sequences:
        yield warning(
            "scheduling.max_in_flight",
            f"is below max_sequences, {step.max_sequences}: steps stay unfilled (was {step.max_in_flight})",
            "raise it",
        )


def adapters_fit(spec: EngineSpec) -> Iterator[Problem]:
    """Host memory holds at least the adapters of one step."""
    lora = spec.lora
    if lora and lora.max_cpu_adapters is not None and lora.max_cpu_adapters < lora.max_adapters:
        yield Problem(
            "lora.max_cpu_adapters",
            f"must be at least max_adapters, {lora.max_adapters} (was {lora.max_cpu_adapters})",
            "raise it, or leave it out",
        )


def speculation_is_possible(spec: EngineSpec) -> Iterator[Problem]:
    """Who guesses must exist, and there must be something to guess."""
    speculation = spec.speculation
    if speculation is None:
        return
    if spec.task != "generate":
        yield Problem("speculation", f"has no meaning for task {spec.task}", "remove it")
    needs_model = speculation.method in ("draft_model", "eagle", "eagle3")
    if needs_model and speculation.model is None:
        yield Problem("speculation.model", f"is required for {speculation.method}", "name the draft model")
    if not needs_model and speculation.model is not None:
        yield Problem("speculation.model", f"is not used by {speculation.method}", "remove it")
    if speculation.ngram_min > speculation.ngram_max:
        yield Problem(
            "speculation.ngram_min",
            f"must be at most ngram_max, {speculation.ngram_max} (was {speculation.ngram_min})",
            "lower it",
        )
    wanted = spec.scheduling.max_sequences * (speculation.tokens + 1)
    if wanted > spec.scheduling.max_batched_tokens:
        yield Problem(
            "scheduling.max_batched_tokens",
            f"must be at least {wanted} to verify {speculation.tokens} guesses a sequence "
            f"(was {spec.scheduling.max_batched_tokens})",
            "raise it, or lower max_sequences",
            Severity.ERROR if spec.lora else Severity.WARNING,  # vLLM refuses it with adapters only
        )


def parsers_exist(spec: EngineSpec) -> Iterator[Problem]:
    """vLLM refuses to start with a parser that it does not know."""
    if spec.task != "generate" and spec.chat != Chat():
        yield Problem("chat", f"has no meaning for task {spec.task}", "remove it")
    for field, known in (("tool_parser", vllm.TOOL_PARSERS), ("reasoning_parser", vllm.REASONING_PARSERS)):
        name = getattr(spec.chat, field)
        if name is not None and name not in known:
            yield Problem(f"chat.{field}", f"is not known to vLLM (was {name})", f"one of {_or(sorted(known))}")


def environment_is_harmless(spec: EngineSpec) -> Iterator[Problem]:
    """Some variables open the engine to whoever reaches it; others are set from fields of the spec."""
    for name in spec.environment:
        if reason := reserved_reason(name):
            yield Problem(f"environment.{name}", reason, "remove it")


def tracing_reaches_somebody(spec: EngineSpec) -> Iterator[Problem]:
    """An endpoint is a URL; the exporters fail silently otherwise."""
    if spec.tracing and not re.fullmatch(r"https?://[^/\s]+(/\S*)?", spec.tracing.otlp_endpoint):
        yield Problem(
            "tracing.otlp_endpoint",
            f"must be an http or https URL (was {spec.tracing.otlp_endpoint})",
            "for example http://127.0.0.1:4318",
        )


def calls_may_end(spec: EngineSpec) -> Iterator[Problem]:
    """A worker without grace cuts off every stream that it is sending."""
    if spec.shutdown_grace_s == 0:
        yield warning("shutdown_grace_s", "calls under way are cut off at every restart (was 0)", "give them 30")


def graphs_are_worth_it(spec: EngineSpec) -> Iterator[Problem]:
    """On a GPU small steps are launched one kernel at a time without graphs."""
    if spec.eager and spec.accelerator.device.is_gpu:
        yield warning("eager", "decoding on a GPU is much slower without CUDA graphs (was true)", "use false")
    if spec.dtype == "float32" and spec.accelerator.device.is_gpu:
        yield warning("dtype", "takes twice the memory and misses the fast kernels (was float32)", "use bfloat16")


RULES: tuple[Rule, ...] = (
    model_is_pinned,
    checksum_says_something,
    names_are_distinct,
    worker_fits_one_machine,
    cpu_is_not_split,
    cores_match_ranks,
    quantization_says_its_bits,
    quantization_suits_dtype,
    fp8_weights_have_hardware,
    block_size_is_allowed,
    kv_memory_is_said_once,
    kv_fraction_is_wise,
    kv_dtype_has_kernel,
    events_can_be_published,
    step_holds_what_it_must,
    adapters_fit,
    speculation_is_possible,
    parsers_exist,
    environment_is_harmless,
    tracing_reaches_somebody,
    calls_may_end,
    graphs_are_worth_it,
)
