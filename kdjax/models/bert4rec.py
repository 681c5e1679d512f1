"""BERT4Rec: a deep bidirectional transformer that fills in masked items."""

from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from kdjax.layers import Dense, Dropout, Embed, LayerNorm, param_of
from kdjax.models.linen import Sizes, from_linen, per_layer, sizes_of
from kdjax.models.transformer import (
  Block,
  block_axes,
  norm_axes,
  scale_of_embedding,
  transformer_sizes,
  width_of_head,
)
from kdjax.types import MASK, Array, Batch, FactoredLogits, Model, Outputs, Params


class BERT4Rec(nn.Module):
  r"""A pre-norm bidirectional transformer on packed rows; tied to its own item table.

  A position whose item is MASK is embedded as the vector `mask_embedding`; the others as in
  `SASRec`. After `num_layers` blocks, in which a position sees its whole segment,
  $\text{query} = \mathrm{LN}(\mathrm{gelu}(\mathrm{LN}(x_n) W + b))$ and
  $\text{logits} = \text{query}\, E^\top + \text{item bias}$. Reads `items`, `segments`,
  `positions` int `[B, L]`. To predict the next item, end the history with a MASK.

  Features: as `SASRec`.

  Attributes: as `SASRec`; `mlp_dim` is 4 dim when None, as published.

  Reference:
    F. Sun et al., BERT4Rec: Sequential Recommendation with Bidirectional Encoder Representations
    from Transformer, CIKM 2019, arXiv:1904.06690. Deviation: norms come before both branches, which
    trains without warm-up (R. Xiong et al., ICML 2020, arXiv:2002.04745).
  """

  num_items: int
  max_length: int = 200
  dim: int = 64
  num_layers: int = 2
  num_heads: int | Sequence[int] = 2
  head_dim: int | None = None
  mlp_dim: int | Sequence[int] | None = None
  dropout: float = 0.1
  embedding_scale: float | None = None
  norm_width: int | None = None
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, batch: Batch) -> Outputs:
    dim, num_layers, dtype = self.dim, self.num_layers, self.dtype
    heads = per_layer(self.num_heads, num_layers)
    mlp_dims = per_layer(self.mlp_dim or 4 * dim, num_layers)
    norm_width = self.norm_width or dim

    ids = batch["items"]
    items = Embed(self.num_items, dim, dtype=dtype, name="item_embedding")
    positions = Embed(self.max_length, dim, dtype=dtype, name="position_embedding")
    filler = jnp.asarray(self.param("mask_embedding", nn.initializers.normal(0.02), (dim,)), dtype)
    x = jnp.where((ids == MASK)[..., None], filler[None, None], items(ids))
    x = x * jnp.asarray(scale_of_embedding(self), dtype) + positions(batch["positions"])
    features: dict[str, Array] = {"embedding": x}
    x = Dropout(self.dropout, name="dropout")(x)
    for i in range(num_layers):
      x, parts = Block(
        num_heads=heads[i],
        head_dim=width_of_head(self),
        mlp_dim=mlp_dims[i],
        causal=False,
        activation=nn.gelu,
        dropout=self.dropout,
        norm_width=norm_width,
        dtype=dtype,
        name=f"block_{i}",
      )(x, batch["segments"])
      features[f"block_{i}"] = x
      features |= {f"block_{i}_{name}": value for name, value in parts.items()}
    x = LayerNorm(width=norm_width, dtype=dtype, name="norm")(x)
    x = nn.gelu(Dense(dim, dtype=dtype, name="head")(x))
    query = LayerNorm(width=norm_width, dtype=dtype, name="head_norm")(x)
    features["query"] = query
    bias = param_of(self, "item_bias", nn.initializers.zeros, (self.num_items,))
    return Outputs(FactoredLogits(query, items.table(), bias), features)


def make_bert4rec(**sizes: Any) -> Model:
  """A BERT4Rec as a pair of pure functions.

  Args:
    sizes: the fields of `BERT4Rec`; only `num_items` has no default.

  Returns:
    Model on packed rows; `apply` gives `FactoredLogits` of `[B, L, dim]` queries.

  Raises:
    TypeError: if a size has another name. ValueError: by `init`, if there are more or fewer sizes
      than layers.
  """
  return from_linen(BERT4Rec(**sizes))


def bert4rec_axes(sizes: Sizes) -> Params:
  """Names the axes of its params, for `kdjax.prune.shrink`: `dim`, `block_0/heads`, `block_0/mlp`.

  Shrunk outputs equal masked outputs for all three, as with `sasrec_axes`.
  """
  module = BERT4Rec(**sizes)
  head_dim = width_of_head(module)
  names = [f"block_{i}" for i in range(module.num_layers)]
  return {
    "item_embedding": {"embedding": (None, "dim")},
    "item_bias": (None,),
    "mask_embedding": ("dim",),
    "position_embedding": {"embedding": (None, "dim")},
    "norm": norm_axes(),
    "head": {"kernel": ("dim", "dim"), "bias": ("dim",)},
    "head_norm": norm_axes(),
  } | {name: block_axes(name, head_dim) for name in names}


def bert4rec_sizes(params: Mapping[str, Any], sizes: Sizes) -> Sizes:
  """The sizes with which `make_bert4rec` takes `params` that were shrunk from `sizes`."""
  module = BERT4Rec(**sizes)
  scale = {"embedding_scale": scale_of_embedding(module)}
  return sizes_of(module) | transformer_sizes(params, module) | scale
