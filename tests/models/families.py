"""Every model family at a tiny size: what the tests of all models run over."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kdjax import models
from kdjax.composed import Composition
from kdjax.tree import map_with_path
from kdjax.types import MASK, PAD, Model, Outputs, Params, Path

KEY = jax.random.key(0)
U, V, D, L = 5, 11, 8, 6  # Users, items, width, positions.


class Family(NamedTuple):
  make: Callable[..., Model]
  axes: Callable[..., Params]
  new_sizes: Callable[..., dict[str, Any]]
  sizes: dict[str, Any]
  batch: dict[str, Any]
  count: int  # Parameters, by the formula next to it.


def packed(users: list[list[int]], length: int) -> dict[str, Any]:
  """One row that holds all histories, and a row with the first alone."""
  rows = np.full([2, length], PAD), np.zeros([2, length], int), np.zeros([2, length], int)
  for row, histories in enumerate([users, users[:1]]):
    start = 0
    for i, items in enumerate(histories):
      span = slice(start, start + len(items))
      rows[0][row, span], rows[1][row, span] = items, i + 1
      rows[2][row, span] = range(len(items))
      start += len(items)
  return dict(zip(("items", "segments", "positions"), map(jnp.asarray, rows), strict=True))


SEQUENCES = packed([[3, 1, 4, 1], [5, 9, 2], [6]], 10)
MASKED = SEQUENCES | {"items": SEQUENCES["items"].at[0, 2].set(MASK).at[1, 3].set(MASK)}
FEATURES = SEQUENCES | {"item_features": jax.random.normal(KEY, (V, 3))}
TEXTS = {
  "tokens": jnp.array([[2, 5, 9, 3, PAD, PAD], [2, 7, 1, 4, 4, 3]]),
  "segments": jnp.array([[1, 1, 1, 1, 0, 0], [1] * 6]),
  "positions": jnp.array([[0, 1, 2, 3, 0, 0], range(6)]),
  "types": jnp.array([[0, 0, 1, 1, 0, 0], [0, 0, 0, 1, 1, 1]]),
}
SEARCHES = {
  "query_tokens": jnp.array([[2, 5, 3], [2, 3, PAD]]),
  "tokens": jnp.array([[[2, 7, 9, 3], [2, 1, 3, PAD]], [[2, 5, 5, 3], [2, 3, PAD, PAD]]]),
}
PAIRS = {"user": jnp.array([0, 4, 2])}
CANDIDATES = PAIRS | {"candidates": jnp.array([[0, 1], [10, 3], [7, 7]])}
CLICKS = {
  "dense": jax.random.normal(KEY, (4, 3)),
  "categorical": jnp.array([[0, 1], [3, 0], [2, PAD], [1, 1]]),
}
SPEECH = {
  "frames": jax.random.normal(KEY, (2, 5, 4)),
  "segments": jnp.array([[1] * 5, [1, 1, 1, 0, 0]]),
}
IMAGES = {"image": jax.random.normal(KEY, (3, 7, 8, 2))}

norm = 2 * D
attention = 4 * D * D + 4 * D  # H * head_dim = D.


def block(mlp_dim: int) -> int:
  return 2 * norm + attention + D * mlp_dim + mlp_dim + mlp_dim * D + D


BERT_SIZES = {
  "vocab_size": V,
  "max_length": 7,
  "dim": D,
  "num_layers": 2,
  "num_heads": 2,
  "mlp_dim": 12,
  "position_offset": 1,
  "normalize": False,
}


def decoder(q: int, kv: int, mlp: int) -> int:
  """A gated block of the decoder below: `q` and `kv` columns of its heads, no biases."""
  return D * (q + 2 * kv) + q * D + 3 * D * mlp + 2 * D


DECODER_SIZES = {
  "vocab_size": V,
  "max_length": 7,
  "dim": D,
  "num_layers": 2,
  "num_heads": 4,
  "num_kv_heads": 2,
  "mlp_dim": 12,
}


def _family(name: str, sizes: dict[str, Any], batch: dict[str, Any], count: int) -> Family:
  get = lambda pattern: getattr(models, pattern.format(name))  # noqa: E731
  return Family(get("make_{}"), get("{}_axes"), get("{}_sizes"), sizes, batch, count)


FAMILIES = {
  "sasrec": _family(
    "sasrec",
    {"num_items": V, "max_length": L, "dim": D, "num_heads": 2, "mlp_dim": 12},
    SEQUENCES,
    V * D + L * D + 2 * block(12) + norm,
  ),
  "sasrec_features": _family(
    "sasrec",
    {
      "num_items": V,
      "max_length": L,
      "dim": D,
      "num_layers": 1,
      "num_heads": 2,
      "mlp_dim": 12,
      "feature_dims": (5, 3),
      "adapter_dim": 6,
    },
    SEQUENCES,
    V * D + L * D + block(12) + norm + V * (5 + 3) + (5 + 3 + 2) * 6 + 2 * (6 * D + D),
  ),
  "sasrec_hashed": _family(
    "sasrec",
    {
      "num_items": V,
      "max_length": L,
      "dim": D,
      "num_layers": 1,
      "num_heads": 2,
      "mlp_dim": 12,
      "composition": ["hashed", 5, 3, False],
    },
    SEQUENCES,
    5 * D + L * D + block(12) + norm,
  ),
  "bert4rec": _family(
    "bert4rec",
    {"num_items": V, "max_length": L, "dim": D},
    MASKED,
    V * D + V + D + L * D + 2 * block(4 * D) + norm + (D * D + D) + norm,
  ),
  "bert": _family(
    "bert",
    BERT_SIZES,
    TEXTS,
    (V + 7 + 2) * D + norm + 2 * block(12),
  ),
  "bert_tokens": _family(
    "bert",
    BERT_SIZES | {"head": "tokens", "num_types": 0},
    TEXTS,
    (V + 7) * D + norm + 2 * block(12) + D * D + D + norm + V,
  ),
  "bert_labels": _family(
    "bert",
    BERT_SIZES | {"head": "labels", "num_labels": 3},
    TEXTS,
    (V + 7 + 2) * D + norm + 2 * block(12) + D * D + D + 3 * D + 3,
  ),
  "bi_encoder": _family(
    "bi_encoder",
    BERT_SIZES | {"num_layers": 1, "num_types": 0, "scale": 0.5},
    SEARCHES,
    (V + 7) * D + norm + block(12),
  ),
  "bi_encoder_static": _family(
    "bi_encoder",
    {"encoder": "static", "vocab_size": V, "dim": D, "normalize": False, "scale": 1.0},
    SEARCHES,
    V * D,
  ),
  "cross_encoder": _family(
    "cross_encoder",
    BERT_SIZES | {"num_layers": 1},
    SEARCHES,
    (V + 7 + 2) * D + norm + block(12) + D * D + D + D + 1,
  ),
  "decoder": _family(
    "decoder",
    DECODER_SIZES | {"window": (3, None), "head_norms": True, "tied": False, "logit_cap": 3.0},
    TEXTS,
    2 * V * D + 2 * (decoder(D, D // 2, 12) + 2 * 2) + D,
  ),
  "decoder_learned": _family(
    "decoder",
    DECODER_SIZES
    | {
      "num_kv_heads": None,
      "rms_norm": False,
      "gated": False,
      "attention_bias": True,
      "out_bias": True,
      "mlp_bias": True,
      "rope_theta": None,
      "embedding_scale": None,
    },
    TEXTS,
    (V + 7) * D + 2 * block(12) + norm,
  ),
  "decoder_pool": _family(
    "decoder",
    DECODER_SIZES | {"head": "pool", "normalize": False, "post_norms": True, "norm_offset": 1.0},
    TEXTS,
    V * D + 2 * (decoder(D, D // 2, 12) + 2 * D) + D,
  ),
  "static": _family("static", {"vocab_size": V, "dim": D, "normalize": False}, TEXTS, V * D),
  "static_labels": _family(
    "static", {"vocab_size": V, "dim": D, "head": "labels"}, TEXTS, V * D + 2 * D + 2
  ),
  "text_gru": _family(
    "text_gru",
    {"vocab_size": V, "dim": D, "hidden_dim": (6, 7), "num_layers": 2, "out_dim": 5},
    TEXTS,
    V * D + 2 * 3 * 6 * (D + 6 + 2) + 2 * 3 * 7 * (2 * 6 + 7 + 2) + 2 * 7 * 5 + 5,
  ),
  "text_gru_labels": _family(
    "text_gru",
    {"vocab_size": V, "dim": D, "head": "labels", "bidirectional": False, "pooling": "last"},
    TEXTS,
    V * D + 3 * D * (D + D + 2) + 2 * D + 2,
  ),
  "text_lstm": _family(
    "text_gru",
    {
      "vocab_size": V,
      "dim": D,
      "hidden_dim": (6, 7),
      "num_layers": 2,
      "cell": "lstm",
      "out_dim": 5,
    },
    TEXTS,
    V * D + 2 * 4 * 6 * (D + 6 + 1) + 2 * 4 * 7 * (2 * 6 + 7 + 1) + 2 * 7 * 5 + 5,
  ),
  "text_cnn": _family(
    "text_cnn",
    {"vocab_size": V, "dim": D, "channels": 6, "out_dim": 5, "widths": (2, 3)},
    TEXTS,
    V * D + 2 * D * 6 + 6 + 3 * D * 6 + 6 + 2 * 6 * 5 + 5,
  ),
  "text_cnn_labels": _family(
    "text_cnn",
    {"vocab_size": V, "dim": D, "head": "labels", "pooling": "mean"},
    TEXTS,
    V * D + 12 * D * D + 3 * D + 3 * D * 2 + 2,
  ),
  "gru4rec": _family(
    "gru4rec",
    {"num_items": V, "dim": D, "hidden_dim": (6, 7), "num_layers": 2},
    SEQUENCES,
    V * D + 3 * 6 * (D + 6 + 2) + 3 * 7 * (6 + 7 + 2) + 7 * D + D,
  ),
  "gru4rec_product": _family(
    "gru4rec",
    {
      "num_items": V,
      "dim": D,
      "hidden_dim": (6, 7),
      "num_layers": 2,
      "composition": Composition("quotient_remainder", 4, product=True),
    },
    SEQUENCES,
    (3 + 4) * D + 3 * 6 * (D + 6 + 2) + 3 * 7 * (6 + 7 + 2) + 7 * D + D,
  ),
  "mf_quotient": _family(
    "mf",
    {
      "num_users": 40,
      "num_items": V,
      "dim": D,
      "composition": Composition("quotient_remainder", 4),
    },
    PAIRS,
    (10 + 4) * D + (3 + 4) * D + V,
  ),
  "mf": _family("mf", {"num_users": U, "num_items": V, "dim": D}, PAIRS, U * D + V * D + V),
  "ncf": _family(
    "ncf",
    {"num_users": U, "num_items": V, "dim": D, "mlp_dim": 6, "hidden": (7, 5)},
    PAIRS,
    (U + V) * D + D + 1 + (U + V) * 6 + 2 * 6 * 7 + 7 + 7 * 5 + 5 + 5,
  ),
  "ncf_hashed": _family(
    "ncf",
    {
      "num_users": 40,
      "num_items": V,
      "dim": D,
      "mlp_dim": 6,
      "hidden": (7,),
      "composition": Composition("hashed", 4),
    },
    CANDIDATES,
    8 * D + D + 1 + 8 * 6 + 2 * 6 * 7 + 7 + 7,
  ),
  "ncf_candidates": _family(
    "ncf",
    {"num_users": U, "num_items": V, "dim": D, "hidden": ()},
    CANDIDATES,
    (U + V) * D + D + 1,
  ),
  "two_tower": _family(
    "two_tower",
    {"num_items": V, "dim": D, "hidden": (7,), "item_hidden": (5,), "out_dim": 6},
    SEQUENCES,
    V * D + (D * 7 + 7 + 7 * 6 + 6) + (D * 5 + 5 + 5 * 6 + 6),
  ),
  "two_tower_quotient": _family(
    "two_tower",
    {
      "num_items": V,
      "dim": D,
      "hidden": (7,),
      "composition": Composition("quotient_remainder"),
    },
    SEQUENCES,
    (3 + 4) * D + 2 * (D * 7 + 7 + 7 * D + D),
  ),
  "two_tower_features": _family(
    "two_tower",
    {"num_items": V, "dim": D, "hidden": (), "normalize": True, "temperature": 0.5},
    FEATURES,
    V * D + 3 * D + D + 2 * (D * D + D),
  ),
  "mlp": _family(
    "mlp",
    {"num_dense": 3, "cardinalities": (4, 2), "dim": D, "hidden": (7, 5)},
    CLICKS,
    6 * D + 2 * D * 7 + 3 * 7 + 7 + 7 * 5 + 5 + 5 + 1,
  ),
  "mlp_linear": _family(
    "mlp", {"num_dense": 3, "cardinalities": (4, 2), "hidden": ()}, CLICKS, 6 + 3 + 1
  ),
  "speech_gru": _family(
    "speech_gru",
    {"num_classes": 3, "dim": D, "hidden_dim": (6, 7), "num_layers": 2},
    SPEECH,
    4 * D + D + 2 * 3 * 6 * (D + 6 + 2) + 2 * 3 * 7 * (2 * 6 + 7 + 2) + 2 * 7 * 3 + 3,
  ),
  "resnet": _family(
    "resnet",
    {"num_classes": 3, "dims": (4, 6), "blocks": 2, "inner_dim": 5},
    IMAGES,
    # Stem; two blocks of 4; one that widens and has a shortcut, one of 6; the end.
    9 * 2 * 4
    + 2 * (2 * 4 + 9 * 4 * 5 + 2 * 5 + 9 * 5 * 4)
    + (2 * 4 + 9 * 4 * 5 + 2 * 5 + 9 * 5 * 6 + 4 * 6)
    + (2 * 6 + 9 * 6 * 5 + 2 * 5 + 9 * 5 * 6)
    + (2 * 6 + 6 * 3 + 3),
  ),
}


def logits(outputs: Any) -> jax.Array:
  """Logits as an array, factored or not."""
  return outputs.logits.dense() if hasattr(outputs.logits, "dense") else outputs.logits


@functools.cache
def fresh(name: str) -> tuple[Callable[..., Outputs], Params]:
  """A family's compiled `apply`, and parameters none of which is 0 or 1."""
  family = FAMILIES[name]
  model = family.make(**family.sizes)
  return jax.jit(model.apply), noise(shapes(model, family.batch))


def shapes(model: Model, batch: dict[str, Any]) -> Params:
  """The parameters' shapes and types, without computing them."""
  return jax.eval_shape(model.init, KEY, batch)


def noise(tree: Params) -> Params:
  """Normal noise of the shapes of `tree`, around 1 for scales."""
  generator = np.random.default_rng(8)

  def draw(path: Path, leaf: Any) -> jax.Array:
    values = generator.normal(float(path[-1] == "scale"), 0.3, leaf.shape)
    return jnp.asarray(values.astype(np.float32))

  return map_with_path(draw, tree)
