"""Llama and those that differ from it in few places, as Hugging Face calls them: Mistral, Qwen."""

from collections.abc import Callable
from typing import Any

from kdjax.models.hub.architecture import Architecture
from kdjax.models.hub.folders import Config
from kdjax.models.linen import Sizes, collapse, per_layer

SLIDING, FULL = "sliding_attention", "full_attention"


def rope_of(said: Config) -> Sizes:
  """Base, factor and bands of one kind of rotary positions."""
  kind = said.get("rope_type", said.get("type", "default"))
  if said.get("partial_rotary_factor", 1) != 1:
    raise ValueError("partial_rotary_factor: only 1 is known")
  bands = None
  if kind == "llama3":
    names = ("low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    bands = tuple(said[name] for name in names)
  elif kind not in ("default", "linear"):
    raise ValueError(f"rope_type {kind!r}: there are default, linear, llama3")
  factor = 1.0 if kind == "default" else said["factor"]
  return {"rope_theta": said["rope_theta"], "rope_factor": factor, "rope_bands": bands}


def rope(config: Config) -> Sizes:
  """Rotary positions as transformers writes them since version 5, or as before."""
  if said := config.get("rope_parameters"):
    return rope_of({"rope_theta": 10000.0} | said)
  base = {"rope_theta": config.get("rope_theta", 10000.0)}
  return rope_of(base | (config.get("rope_scaling") or {}))


def rope_config(theta: float, factor: float, bands: Any = None) -> Config:
  """The inverse of `rope_of`."""
  said: Config = {"rope_theta": theta, "rope_type": "default"}
  if bands is not None:
    names = ("low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    return said | {"rope_type": "llama3", "factor": factor, **dict(zip(names, bands, strict=True))}
  return said if factor == 1 else said | {"rope_type": "linear", "factor": factor}


def heads_of(config: Config) -> Sizes:
  """Heads and their width, where the config may be silent."""
  heads = config["num_attention_heads"]
  return {
    "num_kv_heads": config.get("num_key_value_heads") or heads,
    "head_dim": config.get("head_dim") or config["hidden_size"] // heads,
  }


def windows_of(config: Config, slides: Callable[[int], bool]) -> Sizes:
  """The window of every block: those that the config lists, else those that `slides` chooses."""
  count, window = config["num_hidden_layers"], config.get("sliding_window")
  kinds = config.get("layer_types") or [SLIDING if slides(i) else FULL for i in range(count)]
  if len(kinds) != count or set(kinds) - {SLIDING, FULL}:
    raise ValueError(f"layer_types {kinds}: {count} of {SLIDING} and {FULL} are known")
  return {"window": collapse([window if kind == SLIDING else None for kind in kinds] or [None])}


def window_config(sizes: Sizes) -> Config:
  """The inverse of `windows_of`, where all windows are as wide."""
  each = per_layer(sizes["window"], sizes["num_layers"])
  wide = next((window for window in each if window is not None), None)
  kinds = [FULL if window is None else SLIDING for window in each]
  return {"sliding_window": wide, "layer_types": kinds}


def _llama_sizes(config: Config) -> Sizes:
  return heads_of(config) | rope(config) | {"out_bias": config["attention_bias"]}


def llama_config(sizes: Sizes) -> Config:
  """What all of them write of heads and rotary positions."""
  rope = rope_config(sizes["rope_theta"], sizes["rope_factor"], sizes["rope_bands"])
  heads = {"num_key_value_heads": sizes["num_kv_heads"], "head_dim": sizes["head_dim"]}
  return heads | {"rope_parameters": rope}


FIELDS = {
  "vocab_size": "vocab_size",
  "max_length": "max_position_embeddings",
  "dim": "hidden_size",
  "num_layers": "num_hidden_layers",
  "num_heads": "num_attention_heads",
  "mlp_dim": "intermediate_size",
  "activation": "hidden_act",
  "epsilon": "rms_norm_eps",
  "tied": "tie_word_embeddings",
}
BIAS = {"attention_bias": "attention_bias"}
LAYER = "layers.{i}."

LLAMA = Architecture(
  family="decoder",
  prefix="model.",
  fields=FIELDS | BIAS | {"mlp_bias": "mlp_bias"},
  defaults={
    "tie_word_embeddings": False,
    "attention_bias": False,
    "mlp_bias": False,
    "rms_norm_eps": 1e-6,
    "hidden_act": "silu",
  },
  fixed={},
  sizes=_llama_sizes,
  config=llama_config,
  body={
    "token_embedding": "embed_tokens",
    "block_{i}/norm_1": LAYER + "input_layernorm",
    "block_{i}/attention/query": LAYER + "self_attn.q_proj",
    "block_{i}/attention/key": LAYER + "self_attn.k_proj",
    "block_{i}/attention/value": LAYER + "self_attn.v_proj",
    "block_{i}/attention/query_norm": LAYER + "self_attn.q_norm",
    "block_{i}/attention/key_norm": LAYER + "self_attn.k_norm",
    "block_{i}/attention/out": LAYER + "self_attn.o_proj",
    "block_{i}/norm_2": LAYER + "post_attention_layernorm",
    "block_{i}/gate": LAYER + "mlp.gate_proj",
    "block_{i}/up": LAYER + "mlp.up_proj",
    "block_{i}/down": LAYER + "mlp.down_proj",
    "norm": "norm",
  },
  heads={"pool": {}, "tokens": {"output_embedding": "lm_head"}},
  classes={"pool": "LlamaModel", "tokens": "LlamaForCausalLM"},
  tied={"lm_head.weight": "token_embedding/embedding"},
  skipped=(r"{prefix}layers\.\d+\.self_attn\.rotary_emb\.", r"lm_head\."),
)


def classes_of(name: str) -> dict[str, str]:
  """The architecture of every head, by the name of the model."""
  return {"pool": f"{name}Model", "tokens": f"{name}ForCausalLM"}


MISTRAL = LLAMA._replace(
  fields=FIELDS,
  sizes=lambda config: heads_of(config) | rope(config) | windows_of(config, lambda i: True),
  config=lambda sizes: llama_config(sizes) | {"sliding_window": sizes["window"]},
  classes=classes_of("Mistral"),
)


def _qwen_sizes(config: Config) -> Sizes:
  if not config.get("use_sliding_window"):
    config = config | {"sliding_window": None}
  first = config.get("max_window_layers", 28)
  return heads_of(config) | rope(config) | windows_of(config, lambda i: i >= first)


def _qwen_config(sizes: Sizes) -> Config:
  windows = window_config(sizes)
  slides = windows["sliding_window"] is not None
  return llama_config(sizes) | windows | {"use_sliding_window": slides}


QWEN2 = LLAMA._replace(
  fields=FIELDS,
  fixed={"attention_bias": True},
  sizes=_qwen_sizes,
  config=_qwen_config,
  classes=classes_of("Qwen2"),
)
QWEN3 = QWEN2._replace(
  fields=FIELDS | BIAS,
  fixed={"head_norms": True},
  sizes=lambda config: _qwen_sizes(config) | {"out_bias": config["attention_bias"]},
  classes=classes_of("Qwen3"),
)
