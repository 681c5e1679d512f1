"""SASRec: a causal transformer over a user's items that predicts the next one."""

from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from kdjax.composed import Composition, embed_axes, make_embed
from kdjax.layers import Dense, Dropout, Embed, LayerNorm, take_rows
from kdjax.models.linen import Sizes, from_linen, per_layer, sizes_of
from kdjax.models.transformer import (
  Block,
  block_axes,
  norm_axes,
  scale_of_embedding,
  transformer_sizes,
  width_of_head,
)
from kdjax.types import Array, Batch, FactoredLogits, Model, Outputs, Params


class SASRec(nn.Module):
  r"""A pre-norm causal transformer on packed rows; tied to its own item table.

  $x_0 = \mathrm{scale}\, E[\text{items}] + P[\text{positions}]$, then `num_layers` blocks, then a
  norm: $\text{query} = \mathrm{LN}(x_n)$ and $\text{logits} = \text{query}\, E^\top$. Reads
  `items`, `segments`, `positions` int `[B, L]`. What stands at empty positions is finite but void.

  Features: `embedding`, `block_0`, `block_1`, ..., `query`, all `[B, L, dim]`; of every block
  `block_0_attention` `[B, num_heads, L, L]`, and `block_0_queries`, `block_0_keys`,
  `block_0_values` `[B, L, num_heads * head_dim]`.

  With `feature_dims`, what is known of the items (embeddings of their texts, images, sounds) is
  fused with their ids: $E_i + \sum_m A_m\, \mathrm{gelu}(U_m f_{m,i} + u_m) + a_m$ stands for
  $E_i$, or without `id_embeddings` the sum alone. The tables $f_m$ are leaves
  `item_features_0/embedding` `[V, F]`, ...: put data there, and do not train them
  (`kdjax.train.freeze`).

  Attributes:
    num_items: V, the catalogue.
    max_length: how many positions are learned; a position past them gives NaN.
    dim: width of the residual stream and of the item table.
    num_layers: blocks.
    num_heads: heads of every block, or one number a block.
    head_dim: columns of a head; None for `dim // num_heads` (the most heads of any block).
    mlp_dim: hidden width of every block's feed-forward part, or one number a block; None for
      `dim`, as published.
    dropout: rate on embeddings, attention weights and both residual branches.
    feature_dims: F of every table of item features; none by default.
    id_embeddings: whether items have an embedding of their own beside those.
    adapter_dim: hidden units of what adapts each to `dim`; None for `dim`.
    embedding_scale: None for sqrt(dim). Said explicitly once `dim` was pruned.
    composition: how the item table is made of smaller ones (`kdjax.composed`); None for its own.
    norm_width: what norms divide their statistics by, None for `dim`; see `LayerNorm`.
    dtype: of the computation.

  Reference:
    W.-C. Kang, J. McAuley, Self-Attentive Sequential Recommendation, ICDM 2018, arXiv:1808.09781.
    Deviations: norms come before both branches and keys and values see the normed input too; the
    target (.1821 NDCG@10 on ML-1M with full cross-entropy) is that of A. Klenitskiy, A. Vasilev,
    Turning Dross Into Gold Loss, RecSys 2023, arXiv:2309.07602.
  """

  num_items: int
  max_length: int = 200
  dim: int = 64
  num_layers: int = 2
  num_heads: int | Sequence[int] = 1
  head_dim: int | None = None
  mlp_dim: int | Sequence[int] | None = None
  dropout: float = 0.1
  feature_dims: Sequence[int] = ()
  id_embeddings: bool = True
  adapter_dim: int | None = None
  composition: Composition | tuple[Any, ...] | None = None
  embedding_scale: float | None = None
  norm_width: int | None = None
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, batch: Batch) -> Outputs:
    dim, num_layers, dtype = self.dim, self.num_layers, self.dtype
    heads = per_layer(self.num_heads, num_layers)
    mlp_dims = per_layer(self.mlp_dim or dim, num_layers)
    norm_width = self.norm_width or dim
    scale = scale_of_embedding(self)

    if not (self.id_embeddings or self.feature_dims):
      raise ValueError("without id_embeddings, items need feature_dims")
    positions = Embed(self.max_length, dim, dtype=dtype, name="position_embedding")
    table: Any = jnp.zeros((), dtype)
    if self.id_embeddings:
      options = {"dtype": dtype, "name": "item_embedding"}
      items = make_embed(self.composition, self.num_items, dim, **options)
      table = items(jnp.arange(self.num_items)) if self.feature_dims else items.table()
    if self.feature_dims:
      for m, width in enumerate(self.feature_dims):
        known = Embed(self.num_items, width, dtype=dtype, name=f"item_features_{m}")
        hidden = Dense(self.adapter_dim or dim, dtype=dtype, name=f"adapter_{m}_up")
        adapted = Dense(dim, dtype=dtype, name=f"adapter_{m}_down")
        table += adapted(nn.gelu(hidden(known(jnp.arange(self.num_items)))))
    x = take_rows(table, batch["items"], dtype=dtype) * jnp.asarray(scale, dtype)
    x = x + positions(batch["positions"])
    features: dict[str, Array] = {"embedding": x}
    x = Dropout(self.dropout, name="dropout")(x)
    for i in range(num_layers):
      x, parts = Block(
        num_heads=heads[i],
        head_dim=width_of_head(self),
        mlp_dim=mlp_dims[i],
        causal=True,
        activation=nn.relu,
        dropout=self.dropout,
        norm_width=norm_width,
        dtype=dtype,
        name=f"block_{i}",
      )(x, batch["segments"])
      features[f"block_{i}"] = x
      features |= {f"block_{i}_{name}": value for name, value in parts.items()}
    query = LayerNorm(width=norm_width, dtype=dtype, name="norm")(x)
    features["query"] = query
    return Outputs(FactoredLogits(query, table), features)


def make_sasrec(**sizes: Any) -> Model:
  """A SASRec as a pair of pure functions.

  Args:
    sizes: the fields of `SASRec`; only `num_items` has no default.

  Returns:
    Model on packed rows; `apply` gives `FactoredLogits` of `[B, L, dim]` queries.

  Raises:
    TypeError: if a size has another name. ValueError: by `init`, if there are more or fewer sizes
      than layers, or neither ids nor features of items.

  Example:
    >>> import jax, jax.numpy as jnp
    >>> model = make_sasrec(num_items=10, max_length=4, dim=8)
    >>> row = jnp.arange(4)[None]
    >>> batch = {"items": row, "segments": jnp.ones_like(row), "positions": row}
    >>> params = model.init(jax.random.key(0), batch)
    >>> model.apply(params, batch).logits.dense().shape
    (1, 4, 10)
  """
  return from_linen(SASRec(**sizes))


def fold_item_features(params: Params, sizes: Sizes) -> tuple[Params, Sizes]:
  """The same model without item features: their adapted sum with the ids becomes the item table.

  So a student learns from texts or images of its items, and serves as one of ids alone, as small
  and as fast (the collaborative embedding fusion of DLLM2Rec, paid for in training only).

  Args:
    params: of a `make_sasrec(**sizes)` with `feature_dims`.
    sizes: its sizes.

  Returns:
    Params and sizes of a model without `feature_dims`, with the same outputs.

  Raises:
    ValueError: if the model has no item features.

  Reference:
    Y. Cui et al., Distillation Matters: Empowering Sequential Recommenders to Match the Performance
    of Large Language Models, RecSys 2024, arXiv:2405.00338.
  """
  if not sizes.get("feature_dims"):
    raise ValueError("the model has no item features to fold")
  one = jnp.zeros((1, 1), jnp.int32)
  batch = {"items": one, "segments": one + 1, "positions": one}
  table = make_sasrec(**sizes).apply(params, batch).logits.table
  kept = {n: x for n, x in params.items() if not n.startswith(("item_features_", "adapter_"))}
  fused = ("feature_dims", "id_embeddings", "adapter_dim", "composition")
  plain = {n: x for n, x in sizes.items() if n not in fused}
  return {**kept, "item_embedding": {"embedding": table}}, plain


def sasrec_axes(sizes: Sizes) -> Params:
  """Names the axes of its params, for `kdjax.prune.shrink`: `dim`, `block_0/heads`, `block_0/mlp`.

  And `adapter`, the hidden units of all adapters of item features, where it has some.

  Shrunk outputs equal masked outputs for all three: `LayerNorm` keeps dividing by the old width.
  """
  module = SASRec(**sizes)
  head_dim = width_of_head(module)
  names = [f"block_{i}" for i in range(module.num_layers)]
  axes = {
    "position_embedding": {"embedding": (None, "dim")},
    "norm": norm_axes(),
  } | {name: block_axes(name, head_dim) for name in names}
  if module.id_embeddings:
    axes["item_embedding"] = embed_axes(module.composition, "dim")
  for m in range(len(module.feature_dims)):
    axes |= {
      f"item_features_{m}": {"embedding": (None, None)},
      f"adapter_{m}_up": {"kernel": (None, "adapter"), "bias": ("adapter",)},
      f"adapter_{m}_down": {"kernel": ("adapter", "dim"), "bias": ("dim",)},
    }
  return axes


def sasrec_sizes(params: Mapping[str, Any], sizes: Sizes) -> Sizes:
  """The sizes with which `make_sasrec` takes `params` that were shrunk from `sizes`."""
  module = SASRec(**sizes)
  new = {"embedding_scale": scale_of_embedding(module)}
  if module.feature_dims:
    new["adapter_dim"] = params["adapter_0_up"]["kernel"].shape[1]
  new |= transformer_sizes(params, module, table="position_embedding")
  return sizes_of(module) | new
