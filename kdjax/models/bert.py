"""BERT and its kin: a bidirectional encoder of text with the heads that encoders serve with."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from kdjax.layers import Attention, Dense, Dropout, Embed, LayerNorm
from kdjax.models.linen import Sizes, from_linen, per_layer, sizes_of
from kdjax.models.text_head import ACTIVATIONS, embedding, known
from kdjax.models.transformer import (
  block_axes,
  norm_axes,
  transformer_sizes,
  width_of_head,
)
from kdjax.types import Array, Batch, FactoredLogits, Model, Outputs, Params

HEADS = ("pool", "tokens", "labels")


class BERTBlock(nn.Module):
  """`x = norm_1(x + drop(attention(x)))`, then `x = norm_2(x + drop(down(activation(up(x)))))`."""

  num_heads: int
  head_dim: int
  mlp_dim: int
  activation: Callable[[Array], Array]
  dropout: float
  epsilon: float
  norm_width: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array, segments: Array) -> tuple[Array, dict[str, Array]]:
    """`x` float `[B, L, dim]` to the same, and what `Attention` names."""

    def norm(name: str, x: Array) -> Array:
      return LayerNorm(self.norm_width, self.epsilon, dtype=self.dtype, name=name)(x)

    drop = self.dropout
    attention = Attention(
      self.num_heads, self.head_dim, False, drop, dtype=self.dtype, name="attention"
    )
    y, parts = attention(x, segments)
    x = norm("norm_1", x + Dropout(drop, name="dropout_1")(y))
    y = self.activation(Dense(self.mlp_dim, dtype=self.dtype, name="up")(x))
    y = Dense(x.shape[-1], dtype=self.dtype, name="down")(y)
    return norm("norm_2", x + Dropout(drop, name="dropout_2")(y)), parts


class BERT(nn.Module):
  r"""A post-norm bidirectional transformer over tokens, with one of three heads.

  $x_0 = \mathrm{LN}(E[\text{tokens}] + P[\text{positions}] + T[\text{types}])$, then `num_layers`
  blocks. Reads int `[B, L]`: `tokens`; `segments`, 0 where there is no token; `positions`; and, if
  given, `types` (0 everywhere else), which tell a query from its document. Rows may hold several
  texts of segments 1, 2, ... for the head `tokens`; the others read one text a row.

  - `pool`: an embedding of the text, the pooled last layer, float32 `[B, dim]`.
  - `tokens`: `FactoredLogits` over the vocabulary at every position, for masked language modelling:
    $\text{query} = \mathrm{LN}(f(x_n W + b))$, tied to the token table, plus a bias.
  - `labels`: float32 `[B, num_labels]`: $f(x_n[\text{first}] W + b)\, W_c + b_c$. A cross-encoder
    is this with one label.

  Features: `embedding`, `block_0`, `block_1`, ... `[B, L, dim]`, `query` (what the head multiplies:
  `[B, dim]`, for `tokens` `[B, L, dim]`), and of every block those of `Attention`.

  Attributes:
    vocab_size: V, rows of the token table.
    max_length: rows of the position table, the offset included.
    dim: width of the residual stream.
    num_layers: blocks.
    num_heads: heads of every block, or one number a block.
    head_dim: columns of a head; None for `dim // num_heads`.
    mlp_dim: hidden width of every block's feed-forward part, or one a block; None for 4 dim.
    num_types: rows of the type table; 0 for a model without one (DistilBERT).
    position_offset: of the first position's row (2 in RoBERTa).
    activation: "gelu" (exact), "gelu_tanh", "relu", "silu" or "tanh", in blocks and in `tokens`.
    epsilon: of the norms.
    dropout: rate on embeddings, attention weights and both residual branches, and before labels.
    head: "pool", "tokens" or "labels".
    pooling: "mean", "first", "max" or "last" over the tokens, of the head `pool`.
    normalize: whether `pool` scales embeddings to length 1.
    num_labels: of the head `labels`.
    head_activation: f of the head `labels`: as `activation`.
    head_width: its hidden units; None for `dim`.
    norm_width: what norms divide their statistics by, None for `dim`; see `LayerNorm`.
    dtype: of the computation.

  Raises:
    ValueError: if `head`, `pooling` or an activation is none of these.

  Reference:
    J. Devlin et al., BERT: Pre-training of Deep Bidirectional Transformers for Language
    Understanding, NAACL 2019, arXiv:1810.04805. Y. Liu et al., RoBERTa, 2019, arXiv:1907.11692.
    V. Sanh et al., DistilBERT, 2019, arXiv:1910.01108. N. Reimers, I. Gurevych, Sentence-BERT,
    EMNLP 2019, arXiv:1908.10084 (pooling).
  """

  vocab_size: int
  max_length: int = 512
  dim: int = 384
  num_layers: int = 6
  num_heads: int | Sequence[int] = 12
  head_dim: int | None = None
  mlp_dim: int | Sequence[int] | None = None
  num_types: int = 2
  position_offset: int = 0
  activation: str = "gelu"
  epsilon: float = 1e-12
  dropout: float = 0.1
  head: str = "pool"
  pooling: str = "mean"
  normalize: bool = True
  num_labels: int = 2
  head_activation: str = "tanh"
  head_width: int | None = None
  norm_width: int | None = None
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, batch: Batch) -> Outputs:
    dim, num_layers, dtype = self.dim, self.num_layers, self.dtype
    activation = known("activation", self.activation, ACTIVATIONS)
    heads = per_layer(self.num_heads, num_layers)
    mlp_dims = per_layer(self.mlp_dim or 4 * dim, num_layers)
    width, segments = self.norm_width or dim, batch["segments"]

    tokens = Embed(self.vocab_size, dim, dtype=dtype, name="token_embedding")
    positions = Embed(self.max_length, dim, dtype=dtype, name="position_embedding")
    x = tokens(batch["tokens"]) + positions(batch["positions"] + self.position_offset)
    if self.num_types:
      types = batch.get("types", jnp.zeros_like(segments))
      x += Embed(self.num_types, dim, dtype=dtype, name="type_embedding")(types)
    x = LayerNorm(width, self.epsilon, dtype=dtype, name="embedding_norm")(x)
    features: dict[str, Array] = {"embedding": x}
    x = Dropout(self.dropout, name="dropout")(x)
    for i in range(num_layers):
      x, parts = BERTBlock(
        num_heads=heads[i],
        head_dim=width_of_head(self),
        mlp_dim=mlp_dims[i],
        activation=activation,
        dropout=self.dropout,
        epsilon=self.epsilon,
        norm_width=width,
        dtype=dtype,
        name=f"block_{i}",
      )(x, segments)
      features[f"block_{i}"] = x
      features |= {f"block_{i}_{name}": value for name, value in parts.items()}

    if self.head == "tokens":
      x = activation(Dense(dim, dtype=dtype, name="head")(x))
      x = LayerNorm(width, self.epsilon, dtype=dtype, name="head_norm")(x)
      bias = jnp.asarray(self.param("token_bias", nn.initializers.zeros, (self.vocab_size,)))
      return Outputs(FactoredLogits(x, tokens.table(), bias), features | {"query": x})
    if self.head == "labels":
      f = known("head_activation", self.head_activation, ACTIVATIONS)
      x = f(Dense(self.head_width or dim, dtype=dtype, name="head")(x[:, 0]))
      features["query"] = x
      x = Dropout(self.dropout, name="dropout_head")(x)
      logits = Dense(self.num_labels, dtype=dtype, name="classifier")(x)
      return Outputs(logits.astype(jnp.float32), features)
    if self.head != "pool":
      raise ValueError(f"head={self.head!r}: there are {', '.join(HEADS)}")
    return embedding(self, x, segments, features)


def make_bert(**sizes: Any) -> Model:
  """A BERT as a pair of pure functions.

  Args:
    sizes: the fields of `BERT`; only `vocab_size` has no default.

  Returns:
    Model; its `apply` gives what the head says, see `BERT`.

  Raises:
    TypeError: if a size has another name. ValueError: by `init`, if a name is unknown, or there are
      more or fewer sizes than layers.

  Example:
    >>> import jax
    >>> model = make_bert(vocab_size=9, max_length=4, dim=8, num_layers=1, num_heads=2)
    >>> tokens = jnp.array([[2, 5, 3, -1]])
    >>> batch = {"tokens": tokens, "segments": (tokens >= 0) * 1, "positions": jnp.arange(4)[None]}
    >>> model.apply(model.init(jax.random.key(0), batch), batch).logits.shape
    (1, 8)
  """
  return from_linen(BERT(**sizes))


def bert_axes(sizes: Sizes) -> Params:
  """Names the axes of its params, for `kdjax.prune.shrink`.

  `dim`, `block_0/heads`, `block_0/mlp`, ..., and `head`, the units between `head` and `classifier`.
  """
  module = BERT(**sizes)
  table = {"embedding": (None, "dim")}
  names = [f"block_{i}" for i in range(module.num_layers)]
  axes = {
    "token_embedding": table,
    "position_embedding": table,
    "embedding_norm": norm_axes(),
  } | {name: block_axes(name, width_of_head(module)) for name in names}
  if module.num_types:
    axes["type_embedding"] = table
  if module.head == "tokens":
    axes["head"] = {"kernel": ("dim", "dim"), "bias": ("dim",)}
    axes |= {"head_norm": norm_axes(), "token_bias": (None,)}
  elif module.head == "labels":
    axes["head"] = {"kernel": ("dim", "head"), "bias": ("head",)}
    axes["classifier"] = {"kernel": ("head", None), "bias": (None,)}
  return axes


def bert_sizes(params: Mapping[str, Any], sizes: Sizes) -> Sizes:
  """The sizes with which `make_bert` takes `params` that were shrunk from `sizes`."""
  module = BERT(**sizes)
  new = transformer_sizes(params, module, table="token_embedding")
  if module.head == "labels":
    new["head_width"] = params["head"]["kernel"].shape[1]
  return sizes_of(module) | new
