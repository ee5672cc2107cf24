"""EngineSpec: everything that a vLLM worker is started with, as frozen values that refuse unknown keys.

Decides what can be said and of which type; whether the parts agree with each other and with the hardware is
for `rules`, and how they are said to vLLM for `render`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from engine_config.accelerators import DEVICES, AcceleratorKind, Device

BUNDLED = "bundled:smollm2-135m-instruct"

Dtype = Literal["bfloat16", "float16", "float32"]
KvDtype = Literal["auto", "bfloat16", "float16", "fp8", "fp8_e4m3", "fp8_e5m2"]
QuantizationMethod = Literal[
    "fp8",
    "awq",
    "gptq",
    "compressed-tensors",
    "mxfp4",
    "fp8_per_tensor",
    "fp8_per_channel",
    "fp8_per_block",
]


class Source(StrEnum):
    """Where a model's files come from."""

    BUNDLED = "bundled"
    FOLDER = "folder"
    HUB = "hub"


def _size(value: Any) -> Any:
    """`1GiB` and `512MiB` as bytes; anything else is left for the type to judge."""
    match = re.fullmatch(r"(\d+) ?(KiB|MiB|GiB)", value) if isinstance(value, str) else None
    if match is None:
        return value
    return int(match[1]) * 1024 ** ("KiB", "MiB", "GiB").index(match[2]) * 1024


def _source(value: str) -> str:
    hub = re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", value)
    if value == BUNDLED or hub or value.startswith(("/", "./", "../")):
        return value
    raise ValueError(f"must be {BUNDLED}, a folder (/... or ./...) or a hub id such as Qwen/Qwen3-8B")


def _sha256(value: str) -> str:
    if re.fullmatch(r"[0-9a-f]{64}", value):
        return value
    raise ValueError("must be a SHA-256: 64 lower-case hexadecimal digits")


def _label(value: str) -> str:
    if re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,51}[a-z0-9])?", value):
        return value
    raise ValueError("must be lower-case letters, digits and dashes, at most 53, as Kubernetes names are")


def _served_name(value: str) -> str:
    if re.fullmatch(r"[\w./:@+-]{1,128}", value, re.ASCII):
        return value
    raise ValueError("must be 1 to 128 letters, digits or any of . / : @ + - _")


Bytes = Annotated[int, BeforeValidator(_size)]
Sha256 = Annotated[str, AfterValidator(_sha256)]
ServedName = Annotated[str, AfterValidator(_served_name)]


class Section(BaseModel):
    """A frozen part of a spec: no unknown keys, no conversions between types."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Checksum(Section):
    """What the model's files must hash to; give one of the two."""

    manifest: Sha256 | None = Field(
        default=None,
        description="SHA-256 of the folder's SHA256SUMS text (`python -m engine_config checksum FOLDER`).",
    )
    files: Mapping[str, Sha256] = Field(
        default_factory=dict, description="SHA-256 by file name; files that are not named are not hashed."
    )


class Model(Section):
    """Which weights are served, and how sure one must be of them."""

    source: Annotated[str, AfterValidator(_source)] = Field(
        description=f"`{BUNDLED}`, a folder (absolute, or relative to where the worker starts), or a hub id."
    )
    revision: str | None = Field(default=None, description="Commit of a hub model; a branch name would move.")
    checksum: Checksum | None = Field(
        default=None, description="Checked before the model is loaded; nothing is checked when left out."
    )
    tokenizer: str | None = Field(default=None, description="Folder of another tokenizer; default: the model's own.")
    load_format: Literal["safetensors"] = Field(
        default="safetensors", description="Only safetensors: other formats can run code when they are read."
    )
    trust_remote_code: Literal[False] = Field(
        default=False, description="Always false: a model folder must not bring code of its own."
    )

    @property
    def kind(self) -> Source:
        """Where the files come from."""
        if self.source == BUNDLED:
            return Source.BUNDLED
        return Source.FOLDER if self.source.startswith(("/", ".")) else Source.HUB


class Quantization(Section):
    """How the weights are compressed."""

    method: QuantizationMethod = Field(
        description="As vLLM names it. `fp8_per_...` quantize while loading; the others expect the checkpoint "
        "to be quantized that way."
    )
    weight_bits: Literal[4, 8] | None = Field(
        default=None,
        description="Bits per weight; needed for compressed-tensors (INT8 is 8) and for 8-bit GPTQ.",
    )

    @property
    def bits(self) -> int:
        """Bits per weight, taken from the method where the spec does not say."""
        return self.weight_bits or (4 if self.method in ("awq", "gptq", "mxfp4") else 8)

    @property
    def happens_at_load(self) -> bool:
        """Whether the files hold full-precision weights that are compressed on the way in."""
        return self.method.startswith("fp8_per_")


class Parallelism(Section):
    """How one worker spreads over accelerators; one per tensor x pipeline x data rank."""

    tensor: int = Field(default=1, ge=1, description="Each layer is cut into this many parts.")
    pipeline: int = Field(default=1, ge=1, description="The layers are dealt into this many stages.")
    data: int = Field(default=1, ge=1, description="Whole copies that share experts; plain models use replicas.")
    expert: bool = Field(
        default=False,
        description="Experts of a mixture are dealt out whole instead of being cut by `tensor`.",
    )

    @property
    def accelerators(self) -> int:
        """How many devices one worker takes."""
        return self.tensor * self.pipeline * self.data


class KvCache(Section):
    """The paged KV cache; give `memory_fraction` or `memory_bytes`."""

    block_size: int = Field(default=16, ge=1, description="Tokens in a block; the unit in which prefixes are shared.")
    dtype: KvDtype = Field(default="auto", description="`auto` is the model's dtype; fp8 halves it.")
    memory_fraction: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="Share of each device's memory for weights, activations and KV cache together.",
    )
    memory_bytes: Bytes | None = Field(
        default=None,
        ge=1,
        description="Bytes for the KV cache alone, per device; also written 1GiB or 512MiB.",
    )
    prefix_caching: bool = Field(default=True, description="Whether blocks of earlier prompts are used again.")
    events: bool = Field(default=False, description="Whether the worker tells what its cache holds, for routing.")
    events_buffer_batches: int = Field(
        default=10_000, ge=1, description="Event batches kept for a subscriber that missed some."
    )


class Scheduling(Section):
    """How many sequences and tokens a step may hold."""

    max_sequences: int = Field(default=128, ge=1, description="Sequences decoded together.")
    max_batched_tokens: int = Field(default=2048, ge=1, description="Tokens processed in one step.")
    chunked_prefill: bool = Field(default=True, description="Whether a long prompt may be cut over several steps.")
    priority: bool = Field(default=False, description="Obey the `priority` of a call; else first come.")
    max_in_flight: int | None = Field(
        default=None, ge=1, description="Calls accepted at once, running or waiting; beyond, 503."
    )


class Chat(Section):
    """How messages become prompts and answers become messages."""

    template_path: str | None = Field(default=None, description="Jinja file used instead of the model's template.")
    tool_parser: str | None = Field(
        default=None,
        description="vLLM's parser for this model's tool calls; without it tool_choice auto is refused.",
    )
    reasoning_parser: str | None = Field(default=None, description="vLLM's parser for this model's reasoning text.")


class Lora(Section):
    """Adapters served beside the base model."""

    max_adapters: int = Field(default=1, ge=1, description="Different adapters in one step.")
    max_cpu_adapters: int | None = Field(default=None, ge=1, description="Adapters kept in host memory.")
    max_rank: Literal[1, 8, 16, 32, 64, 128, 256, 320, 512] = Field(
        default=16, description="Largest rank of any adapter; memory is set aside for it."
    )
    adapters: Mapping[ServedName, str] = Field(
        default_factory=dict, description="Folder of each adapter by the name it is called with."
    )


class Speculation(Section):
    """Tokens guessed ahead and verified in one step."""

    method: Literal["ngram", "draft_model", "eagle", "eagle3", "mtp"] = Field(
        description="`ngram` looks in the prompt, `mtp` uses the model's own layers, the others need `model`."
    )
    tokens: int = Field(ge=1, le=32, description="Tokens guessed per step.")
    model: str | None = Field(default=None, description="Folder or hub id of the draft model.")
    ngram_min: int = Field(default=2, ge=1, description="Shortest run of tokens looked for (ngram only).")
    ngram_max: int = Field(default=5, ge=1, description="Longest run of tokens looked for (ngram only).")


class Multimodal(Section):
    """How many items of each kind one prompt may carry; without this section, none."""

    images: int = Field(default=0, ge=0, description="Images per prompt.")
    videos: int = Field(default=0, ge=0, description="Videos per prompt.")
    audios: int = Field(default=0, ge=0, description="Audio clips per prompt.")
    media_domains: tuple[str, ...] = Field(
        default=(), description="Hosts that media may be fetched from; none: media must come inside the call."
    )


class Tracing(Section):
    """Where the engine sends its own spans."""

    otlp_endpoint: str = Field(description="URL of the receiver, e.g. http://127.0.0.1:4318.")
    protocol: Literal["http/protobuf", "grpc"] = Field(default="http/protobuf", description="OTLP transport.")


class Accelerator(Section):
    """What one worker runs on; how many follows from the parallelism."""

    kind: AcceleratorKind = Field(description="`cpu` or a GPU that the planner knows.")
    cpu_cores: str = Field(
        default="auto",
        description="Cores of a CPU worker: `auto` (all but one), `nobind`, or a list such as 0-3 (one list "
        "per rank, separated by |).",
    )

    @property
    def device(self) -> Device:
        """The facts known of this kind."""
        return DEVICES[self.kind]


class EngineSpec(Section):
    """One worker, completely: the same spec always gives the same command."""

    name: Annotated[str, AfterValidator(_label)] = Field(description="Name of the profile.")
    model: Model = Field(description="The weights.")
    served_names: tuple[ServedName, ...] = Field(
        min_length=1, description="Names that calls may use; the first is the one that replies carry."
    )
    task: Literal["generate", "embed"] = Field(default="generate", description="What the model is asked to do.")
    dtype: Dtype = Field("bfloat16", description="Type of weights (where not quantized) and activations.")
    quantization: Quantization | None = Field(default=None, description="How weights are compressed, if they are.")
    parallelism: Parallelism = Field(default_factory=Parallelism, description="Spread over accelerators.")
    context_tokens: int = Field(ge=1, description="Longest prompt and answer together, in tokens.")
    kv_cache: KvCache = Field(default_factory=KvCache, description="Memory of what has been read.")
    scheduling: Scheduling = Field(default_factory=Scheduling, description="Size of a step.")
    chat: Chat = Field(default_factory=Chat, description="Messages to prompts and back.")
    lora: Lora | None = Field(default=None, description="Adapters, if any.")
    speculation: Speculation | None = Field(default=None, description="Guessing ahead, if wanted.")
    multimodal: Multimodal | None = Field(default=None, description="Images, video, audio, if any.")
    tracing: Tracing | None = Field(default=None, description="The engine's own spans, if wanted.")
    accelerator: Accelerator = Field(description="What it runs on.")
    eager: bool = Field(
        default=False, description="Run without compilation and CUDA graphs: starts sooner, decodes slower."
    )
    environment: Mapping[str, str] = Field(
        default_factory=dict, description="Further environment variables of the worker."
    )
    replicas: int = Field(default=1, ge=1, description="Workers of this spec.")
    startup_timeout_s: int = Field(default=900, ge=1, description="Longest time from start to ready, in seconds.")
    shutdown_grace_s: int = Field(
        default=30,
        ge=0,
        description="Seconds that calls under way get to end when the worker is told to stop.",
    )
