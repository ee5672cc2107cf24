"""The shape of a model: what a config.json says that decides memory, counted exactly.

Reads the keys of transformer language models (grouped-query, multi-query and multi-head latent attention,
dense and mixture-of-experts) and says so plainly when a model is of another kind. Bytes are for `plan`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any

import yaml

# Models that read a text whole and keep no KV cache.
_ENCODERS = ("bert", "roberta", "xlm-roberta", "modernbert")


class UnknownArchitecture(ValueError):
    """The configuration is of a kind that is not counted here."""


@dataclass(frozen=True, slots=True)
class Latent:
    """Multi-head latent attention (DeepSeek): one compressed vector per token in place of keys and values."""

    kv_rank: int
    rope_dim: int
    nope_dim: int
    value_dim: int
    query_rank: int

    @property
    def cached_dim(self) -> int:
        """Numbers cached per token and layer."""
        return self.kv_rank + self.rope_dim


@dataclass(frozen=True, slots=True)
class Experts:
    """A mixture-of-experts feed-forward part."""

    count: int
    active: int
    intermediate: int
    shared: int
    dense_layers: int


@dataclass(frozen=True, slots=True)
class LayerParameters:
    """Parameters of one layer, by the way in which tensor parallelism cuts them."""

    heads: int
    kv_heads: int
    whole: int
    feed_forward: int
    experts: int
    norms: int

    @property
    def total(self) -> int:
        return self.heads + self.kv_heads + self.whole + self.feed_forward + self.experts + self.norms


@dataclass(frozen=True, slots=True)
class Architecture:
    """The numbers of a model that memory depends on; `causal` models keep a KV cache."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    max_context: int
    tied: bool
    causal: bool
    gated: bool
    query_key_norm: bool
    attention_bias: bool
    latent: Latent | None
    experts: Experts | None
    window: int | None
    windowed_layers: int
    quantization: str | None

    @property
    def embedding_parameters(self) -> int:
        """Input embedding, and output head unless they are one."""
        return self.vocabulary * self.hidden * (1 if self.tied else 2)

    @property
    def dense_layers(self) -> int:
        """Layers whose feed-forward part is one block rather than experts."""
        return self.experts.dense_layers if self.experts else self.layers

    @property
    def parameters(self) -> int:
        """All parameters of the model."""
        sparse = self.layers - self.dense_layers
        dense_total = self.dense_layers * self.layer(sparse=False).total
        sparse_total = sparse * self.layer(sparse=True).total if sparse else 0
        return self.embedding_parameters + dense_total + sparse_total + self.hidden

    def layer(self, *, sparse: bool) -> LayerParameters:
        """Parameters of one layer; `sparse` for one with experts."""
        heads, kv_heads, whole = self._attention()
        matrices = 3 if self.gated else 2
        feed_forward = matrices * self.hidden * self.intermediate
        in_experts = 0
        if sparse and self.experts:
            expert = matrices * self.hidden * self.experts.intermediate
            in_experts = self.experts.count * expert
            feed_forward = self.experts.shared * expert
            whole += self.hidden * self.experts.count
        norms = 2 * self.hidden + (2 * self.head_dim if self.query_key_norm else 0)
        return LayerParameters(heads, kv_heads, whole, feed_forward, in_experts, norms)

    def _attention(self) -> tuple[int, int, int]:
        """Parameters cut by heads, by KV heads, and not cut."""
        if self.latent:
            m = self.latent
            query_out = self.heads * (m.nope_dim + m.rope_dim)
            query_in = m.query_rank or self.hidden
            up = self.heads * m.kv_rank * (m.nope_dim + m.value_dim)
            heads = query_in * query_out + up + self.heads * m.value_dim * self.hidden
            whole = self.hidden * (m.kv_rank + m.rope_dim) + m.kv_rank
            if m.query_rank:
                whole += self.hidden * m.query_rank + m.query_rank
            return heads, 0, whole
        width = self.head_dim * (self.hidden + (1 if self.attention_bias else 0))
        return self.heads * (width + self.head_dim * self.hidden), 2 * self.kv_heads * width, 0


def known_config(source: str) -> Mapping[str, Any] | None:
    """Configuration shipped for a model source, or None."""
    text = resources.files("engine_config").joinpath("architectures.yaml").read_text("utf-8")
    entry = yaml.safe_load(text).get(source)
    return entry["config"] if entry else None


def read(config: Mapping[str, Any]) -> Architecture:
    """The architecture that a config.json describes.

    Raises:
        UnknownArchitecture: A number is missing, or the model keeps other state than a KV cache.
    """
    text = config.get("text_config") or config
    layer_types = text.get("layer_types") or []
    if "linear_attention" in layer_types or any(k in text for k in ("ssm_cfg", "mamba_d_state")):
        raise UnknownArchitecture("the model keeps recurrent state, which is not planned here")
    layers = _number(text, "num_hidden_layers", "n_layer")
    hidden = _number(text, "hidden_size", "n_embd")
    heads = _number(text, "num_attention_heads", "n_head")
    model_type = str(text.get("model_type", ""))
    window, windowed = _window(text, layer_types, layers)
    return Architecture(
        layers=layers,
        hidden=hidden,
        intermediate=text.get("intermediate_size") or 4 * hidden,
        heads=heads,
        kv_heads=text.get("num_key_value_heads") or heads,
        head_dim=text.get("head_dim") or hidden // heads,
        vocabulary=_number(text, "vocab_size"),
        max_context=_number(text, "max_position_embeddings", "n_positions", "max_sequence_length"),
        tied=bool(text.get("tie_word_embeddings", config.get("tie_word_embeddings", True))),
        causal=model_type not in _ENCODERS,
        gated=model_type not in (*_ENCODERS, "gpt2", "opt", "gpt_neox"),
        query_key_norm=model_type.startswith("qwen3"),
        attention_bias=bool(text.get("attention_bias", model_type == "qwen2")),
        latent=_latent(text),
        experts=_experts(text, layers),
        window=window,
        windowed_layers=windowed,
        quantization=(config.get("quantization_config") or {}).get("quant_method"),
    )


def _number(text: Mapping[str, Any], *keys: str) -> int:
    for key in keys:
        value = text.get(key)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
    raise UnknownArchitecture(f"the model's configuration has no {' or '.join(keys)}")


def _latent(text: Mapping[str, Any]) -> Latent | None:
    if not text.get("kv_lora_rank"):
        return None
    return Latent(
        kv_rank=text["kv_lora_rank"],
        rope_dim=text.get("qk_rope_head_dim", 64),
        nope_dim=text.get("qk_nope_head_dim", 128),
        value_dim=text.get("v_head_dim", 128),
        query_rank=text.get("q_lora_rank") or 0,
    )


def _experts(text: Mapping[str, Any], layers: int) -> Experts | None:
    count = text.get("num_experts") or text.get("num_local_experts") or text.get("n_routed_experts")
    if not count:
        return None
    every = text.get("decoder_sparse_step") or 1
    dense = len(set(text.get("mlp_only_layers") or ())) or text.get("first_k_dense_replace") or 0
    return Experts(
        count=count,
        active=text.get("num_experts_per_tok") or 1,
        intermediate=text.get("moe_intermediate_size") or _number(text, "intermediate_size"),
        shared=text.get("n_shared_experts") or 0,
        dense_layers=dense if every == 1 else layers - layers // every,
    )


def _window(text: Mapping[str, Any], layer_types: list[str], layers: int) -> tuple[int | None, int]:
    """Sliding window in tokens, and how many layers have it."""
    window = text.get("sliding_window")
    if not window or text.get("use_sliding_window") is False:
        return None, 0
    if layer_types:
        windowed = layer_types.count("sliding_attention")
    elif pattern := text.get("sliding_window_pattern"):
        windowed = layers - layers // pattern
    else:
        windowed = layers
    return (window, windowed) if windowed else (None, 0)
