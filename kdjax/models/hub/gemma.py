"""The three generations of Gemma, as Hugging Face calls them."""

from kdjax.models.hub.folders import Config
from kdjax.models.hub.llama import (
  BIAS,
  FIELDS,
  FULL,
  LAYER,
  LLAMA,
  SLIDING,
  classes_of,
  heads_of,
  llama_config,
  rope,
  rope_config,
  rope_of,
  window_config,
  windows_of,
)
from kdjax.models.linen import Sizes, collapse, per_layer

GEMMA = LLAMA._replace(
  fields=FIELDS | BIAS,
  defaults=LLAMA.defaults
  | {"tie_word_embeddings": True, "hidden_act": "gelu_pytorch_tanh", "head_dim": 256},
  fixed={"norm_offset": 1.0, "embedding_scale": None},
  classes=classes_of("Gemma"),
)


def _gemma2_sizes(config: Config) -> Sizes:
  return _gemma_sizes(config) | rope(config) | windows_of(config, lambda i: i % 2 == 0)


def _gemma_sizes(config: Config) -> Sizes:
  return heads_of(config) | {
    "out_bias": config["attention_bias"],
    "query_scale": config["query_pre_attn_scalar"] ** -0.5,
    "attention_cap": config["attn_logit_softcapping"],
    "logit_cap": config["final_logit_softcapping"],
  }


def _gemma2_config(sizes: Sizes) -> Config:
  return (
    llama_config(sizes)
    | window_config(sizes)
    | {
      "query_pre_attn_scalar": round(sizes["query_scale"] ** -2),
      "attn_logit_softcapping": sizes["attention_cap"],
      "final_logit_softcapping": sizes["logit_cap"],
    }
  )


GEMMA2 = GEMMA._replace(
  fields=GEMMA.fields | {"activation": "hidden_activation"},
  defaults=GEMMA.defaults
  | {
    "hidden_activation": "gelu_pytorch_tanh",
    "query_pre_attn_scalar": 256,
    "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0,
    "sliding_window": 4096,
  },
  fixed=GEMMA.fixed | {"post_norms": True},
  sizes=_gemma2_sizes,
  config=_gemma2_config,
  body={
    **LLAMA.body,
    "block_{i}/post_norm_1": LAYER + "post_attention_layernorm",
    "block_{i}/norm_2": LAYER + "pre_feedforward_layernorm",
    "block_{i}/post_norm_2": LAYER + "post_feedforward_layernorm",
  },
  classes=classes_of("Gemma2"),
)


def _gemma3_sizes(config: Config) -> Sizes:
  """Windowed blocks have rotary positions of their own."""
  pattern = config.get("sliding_window_pattern") or config.get("_sliding_window_pattern") or 6
  windows = windows_of(config, lambda i: bool((i + 1) % pattern))
  if said := config.get("rope_parameters"):
    far, near = (rope_of(said[kind]) for kind in (FULL, SLIDING))
  else:
    base = {"rope_theta": config.get("rope_theta", 1e6)}
    far = rope_of(base | (config.get("rope_scaling") or {}))
    near = rope_of({"rope_theta": config.get("rope_local_base_freq", 10000.0)})
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
  said = {FULL: rope_config(1e6, 1.0), SLIDING: rope_config(1e4, 1.0)}
  for window, theta, factor in zip(*each, strict=True):
    said[FULL if window is None else SLIDING] = rope_config(theta, factor)
  return config | {"rope_parameters": said}


GEMMA3 = GEMMA2._replace(
  defaults=GEMMA2.defaults | {"attn_logit_softcapping": None, "final_logit_softcapping": None},
  fixed=GEMMA2.fixed | {"head_norms": True},
  sizes=_gemma3_sizes,
  config=_gemma3_config,
  classes=classes_of("Gemma3Text") | {"tokens": "Gemma3ForCausalLM"},
)
