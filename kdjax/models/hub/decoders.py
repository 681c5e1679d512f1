"""Decoders, as Hugging Face calls them: GPT-2 here, all by their `model_type`."""

from kdjax.models.hub.architecture import Architecture, Part
from kdjax.models.hub.gemma import GEMMA, GEMMA2, GEMMA3
from kdjax.models.hub.llama import LLAMA, MISTRAL, QWEN2, QWEN3

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

DECODERS: dict[str, Architecture] = {
  "gpt2": _GPT2,
  "llama": LLAMA,
  "mistral": MISTRAL,
  "qwen2": QWEN2,
  "qwen3": QWEN3,
  "gemma": GEMMA,
  "gemma2": GEMMA2,
  "gemma3_text": GEMMA3,
}
