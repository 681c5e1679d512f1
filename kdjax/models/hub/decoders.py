"""Decoders, as Hugging Face calls them: GPT-2, Llama, Mistral, Qwen, Gemma."""

from collections.abc import Callable
from typing import Any

from kdjax.models.hub.architecture import Architecture, Part
from kdjax.models.hub.folders import Config
from kdjax.models.linen import Sizes, collapse, per_layer

_SLIDING, _FULL = "sliding_attention", "full_attention"

_GPT2 = Architecture(
  family="decoder",
  prefix="transformer.",
  fields={
    "vocab_size": "vocab_size",
    "max_length": "n_positions",
    "dim": "n_embd",
    "num_layers": "n_layer",
    "num_heads": "n_head",
    "mlp_dim": "n_inner",
    "activation": "activation_function",
    "epsilon": "layer_norm_epsilon",
    "dropout": "resid_pdrop",
    "tied": "tie_word_embeddings",
  },
  defaults={"n_inner": None, "tie_word_embeddings": True},
  fixed={
    "rms_norm": False,
    "gated": False,
    "attention_bias": True,
    "out_bias": True,
    "mlp_bias": True,
    "rope_theta": None,
  },
  sizes=lambda config: {},
  config=lambda sizes: {},
  body={
    "token_embedding": "wte",
    "position_embedding": "wpe",
    "block_{i}/norm_1": "h.{i}.ln_1",
    "block_{i}/attention/query": Part("h.{i}.attn.c_attn", 0, 3),
    "block_{i}/attention/key": Part("h.{i}.attn.c_attn", 1, 3),
    "block_{i}/attention/value": Part("h.{i}.attn.c_attn", 2, 3),
    "block_{i}/attention/out": "h.{i}.attn.c_proj",
    "block_{i}/norm_2": "h.{i}.ln_2",
    "block_{i}/up": "h.{i}.mlp.c_fc",
    "block_{i}/down": "h.{i}.mlp.c_proj",
    "norm": "ln_f",
  },
  heads={"pool": {}, "tokens": {"output_embedding": "lm_head"}},
  classes={"pool": "GPT2Model", "tokens": "GPT2LMHeadModel"},
  tied={"lm_head.weight": "token_embedding/embedding"},
  skipped=(r"{prefix}h\.\d+\.attn\.(bias|masked_bias)$", r"lm_head\."),
  turned=False,
)


def _rope_of(said: Config) -> Sizes:
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


def _rope(config: Config) -> Sizes:
  """Rotary positions as transformers writes them since version 5, or as before."""
  if said := config.get("rope_parameters"):
    return _rope_of({"rope_theta": 10000.0} | said)
  base = {"rope_theta": config.get("rope_theta", 10000.0)}
  return _rope_of(base | (config.get("rope_scaling") or {}))


def _rope_config(theta: float, factor: float, bands: Any = None) -> Config:
  """The inverse of `_rope_of`."""
  said: Config = {"rope_theta": theta, "rope_type": "default"}
  if bands is not None:
    names = ("low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    return said | {"rope_type": "llama3", "factor": factor, **dict(zip(names, bands, strict=True))}
  return said if factor == 1 else said | {"rope_type": "linear", "factor": factor}


def _heads(config: Config) -> Sizes:
  """Heads and their width, where the config may be silent."""
  heads = config["num_attention_heads"]
  return {
    "num_kv_heads": config.get("num_key_value_heads") or heads,
    "head_dim": config.get("head_dim") or config["hidden_size"] // heads,
  }


def _windows(config: Config, slides: Callable[[int], bool]) -> Sizes:
  """The window of every block: those that the config lists, else those that `slides` chooses."""
  count, window = config["num_hidden_layers"], config.get("sliding_window")
  kinds = config.get("layer_types") or [_SLIDING if slides(i) else _FULL for i in range(count)]
  if len(kinds) != count or set(kinds) - {_SLIDING, _FULL}:
    raise ValueError(f"layer_types {kinds}: {count} of {_SLIDING} and {_FULL} are known")
  return {"window": collapse([window if kind == _SLIDING else None for kind in kinds] or [None])}


def _window_config(sizes: Sizes) -> Config:
  """The inverse of `_windows`, where all windows are as wide."""
  each = per_layer(sizes["window"], sizes["num_layers"])
  wide = next((window for window in each if window is not None), None)
  kinds = [_FULL if window is None else _SLIDING for window in each]
  return {"sliding_window": wide, "layer_types": kinds}


def _llama_sizes(config: Config) -> Sizes:
  return _heads(config) | _rope(config) | {"out_bias": config["attention_bias"]}


def _llama_config(sizes: Sizes) -> Config:
  rope = _rope_config(sizes["rope_theta"], sizes["rope_factor"], sizes["rope_bands"])
  heads = {"num_key_value_heads": sizes["num_kv_heads"], "head_dim": sizes["head_dim"]}
  return heads | {"rope_parameters": rope}


_FIELDS = {
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
_BIAS = {"attention_bias": "attention_bias"}
_LAYER = "layers.{i}."

_LLAMA = Architecture(
  family="decoder",
  prefix="model.",
  fields=_FIELDS | _BIAS | {"mlp_bias": "mlp_bias"},
  defaults={
    "tie_word_embeddings": False,
    "attention_bias": False,
    "mlp_bias": False,
    "rms_norm_eps": 1e-6,
    "hidden_act": "silu",
  },
  fixed={},
  sizes=_llama_sizes,
  config=_llama_config,
  body={
    "token_embedding": "embed_tokens",
    "block_{i}/norm_1": _LAYER + "input_layernorm",
    "block_{i}/attention/query": _LAYER + "self_attn.q_proj",
    "block_{i}/attention/key": _LAYER + "self_attn.k_proj",
    "block_{i}/attention/value": _LAYER + "self_attn.v_proj",
    "block_{i}/attention/query_norm": _LAYER + "self_attn.q_norm",
    "block_{i}/attention/key_norm": _LAYER + "self_attn.k_norm",
    "block_{i}/attention/out": _LAYER + "self_attn.o_proj",
    "block_{i}/norm_2": _LAYER + "post_attention_layernorm",
    "block_{i}/gate": _LAYER + "mlp.gate_proj",
    "block_{i}/up": _LAYER + "mlp.up_proj",
    "block_{i}/down": _LAYER + "mlp.down_proj",
    "norm": "norm",
  },
  heads={"pool": {}, "tokens": {"output_embedding": "lm_head"}},
  classes={"pool": "LlamaModel", "tokens": "LlamaForCausalLM"},
  tied={"lm_head.weight": "token_embedding/embedding"},
  skipped=(r"{prefix}layers\.\d+\.self_attn\.rotary_emb\.", r"lm_head\."),
)


def _classes(name: str) -> dict[str, str]:
  return {"pool": f"{name}Model", "tokens": f"{name}ForCausalLM"}


_MISTRAL = _LLAMA._replace(
  fields=_FIELDS,
  sizes=lambda config: _heads(config) | _rope(config) | _windows(config, lambda i: True),
  config=lambda sizes: _llama_config(sizes) | {"sliding_window": sizes["window"]},
  classes=_classes("Mistral"),
)


def _qwen_sizes(config: Config) -> Sizes:
  if not config.get("use_sliding_window"):
    config = config | {"sliding_window": None}
  first = config.get("max_window_layers", 28)
  return _heads(config) | _rope(config) | _windows(config, lambda i: i >= first)


def _qwen_config(sizes: Sizes) -> Config:
  windows = _window_config(sizes)
  slides = windows["sliding_window"] is not None
  return _llama_config(sizes) | windows | {"use_sliding_window": slides}


_QWEN2 = _LLAMA._replace(
  fields=_FIELDS,
  fixed={"attention_bias": True},
  sizes=_qwen_sizes,
  config=_qwen_config,
  classes=_classes("Qwen2"),
)
_QWEN3 = _QWEN2._replace(
  fields=_FIELDS | _BIAS,
  fixed={"head_norms": True},
  sizes=lambda config: _qwen_sizes(config) | {"out_bias": config["attention_bias"]},
  classes=_classes("Qwen3"),
)

_GEMMA = _LLAMA._replace(
  fields=_FIELDS | _BIAS,
  defaults=_LLAMA.defaults
  | {"tie_word_embeddings": True, "hidden_act": "gelu_pytorch_tanh", "head_dim": 256},
  fixed={"norm_offset": 1.0, "embedding_scale": None},
  classes=_classes("Gemma"),
)


def _gemma2_sizes(config: Config) -> Sizes:
  return _gemma_sizes(config) | _rope(config) | _windows(config, lambda i: i % 2 == 0)


def _gemma_sizes(config: Config) -> Sizes:
  return _heads(config) | {
    "out_bias": config["attention_bias"],
    "query_scale": config["query_pre_attn_scalar"] ** -0.5,
    "attention_cap": config["attn_logit_softcapping"],
    "logit_cap": config["final_logit_softcapping"],
  }


def _gemma2_config(sizes: Sizes) -> Config:
  return (
    _llama_config(sizes)
    | _window_config(sizes)
    | {
      "query_pre_attn_scalar": round(sizes["query_scale"] ** -2),
      "attn_logit_softcapping": sizes["attention_cap"],
      "final_logit_softcapping": sizes["logit_cap"],
    }
  )


_GEMMA2 = _GEMMA._replace(
  fields=_GEMMA.fields | {"activation": "hidden_activation"},
  defaults=_GEMMA.defaults
  | {
    "hidden_activation": "gelu_pytorch_tanh",
    "query_pre_attn_scalar": 256,
    "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0,
    "sliding_window": 4096,
  },
  fixed=_GEMMA.fixed | {"post_norms": True},
  sizes=_gemma2_sizes,
  config=_gemma2_config,
  body={
    **_LLAMA.body,
    "block_{i}/post_norm_1": _LAYER + "post_attention_layernorm",
    "block_{i}/norm_2": _LAYER + "pre_feedforward_layernorm",
    "block_{i}/post_norm_2": _LAYER + "post_feedforward_layernorm",
  },
  classes=_classes("Gemma2"),
)


def _gemma3_sizes(config: Config) -> Sizes:
  """Windowed blocks have rotary positions of their own."""
  pattern = config.get("sliding_window_pattern") or config.get("_sliding_window_pattern") or 6
  windows = _windows(config, lambda i: bool((i + 1) % pattern))
  if said := config.get("rope_parameters"):
    far, near = (_rope_of(said[kind]) for kind in (_FULL, _SLIDING))
  else:
    base = {"rope_theta": config.get("rope_theta", 1e6)}
    far = _rope_of(base | (config.get("rope_scaling") or {}))
    near = _rope_of({"rope_theta": config.get("rope_local_base_freq", 10000.0)})
  if far["rope_bands"] or near["rope_bands"]:
    raise ValueError("rope_type 'llama3' is not known of a Gemma")
  each = per_layer(windows["window"], config["num_hidden_layers"])
  kinds = [far if window is None else near for window in each]
  ropes = {name: collapse([kind[name] for kind in kinds]) for name in ("rope_theta", "rope_factor")}
  return _gemma_sizes(config) | windows | ropes


def _gemma3_config(sizes: Sizes) -> Config:
  config = _gemma2_config(sizes)
  each = [
    per_layer(sizes[name], sizes["num_layers"]) for name in ("window", "rope_theta", "rope_factor")
  ]
  said = {_FULL: _rope_config(1e6, 1.0), _SLIDING: _rope_config(1e4, 1.0)}
  for window, theta, factor in zip(*each, strict=True):
    said[_FULL if window is None else _SLIDING] = _rope_config(theta, factor)
  return config | {"rope_parameters": said}


_GEMMA3 = _GEMMA2._replace(
  defaults=_GEMMA2.defaults | {"attn_logit_softcapping": None, "final_logit_softcapping": None},
  fixed=_GEMMA2.fixed | {"head_norms": True},
  sizes=_gemma3_sizes,
  config=_gemma3_config,
  classes=_classes("Gemma3Text") | {"tokens": "Gemma3ForCausalLM"},
)

DECODERS: dict[str, Architecture] = {
  "gpt2": _GPT2,
  "llama": _LLAMA,
  "mistral": _MISTRAL,
  "qwen2": _QWEN2,
  "qwen3": _QWEN3,
  "gemma": _GEMMA,
  "gemma2": _GEMMA2,
  "gemma3_text": _GEMMA3,
}
