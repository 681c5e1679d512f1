"""GRU4Rec: gated recurrent layers over a user's items that predict the next one."""

from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from kdjax.composed import Composition, embed_axes, embed_width, make_embed
from kdjax.layers import Dense, Dropout
from kdjax.models.linen import Sizes, collapse, from_linen, per_layer, sizes_of
from kdjax.models.recurrent import GRU, cell_axes, recurrent_widths
from kdjax.types import Array, Batch, FactoredLogits, Model, Outputs, Params


class GRU4Rec(nn.Module):
  r"""Recurrent layers on packed rows; tied to its own item table.

  $\text{query} = h W + b$ with h the state of the last layer, $\text{logits} = \text{query}\,
  E^\top$. Reads `items` and `positions` int `[B, L]`; a position 0 starts a segment.

  Features: `embedding` `[B, L, dim]`, `layer_0`, ... `[B, L, hidden_dim]`, `query` `[B, L, dim]`.

  Attributes:
    num_items: V, the catalogue.
    dim: width of the item table and the query.
    hidden_dim: width of every layer's state, or one number a layer; None for `dim`.
    num_layers: recurrent layers.
    dropout: rate on embeddings and every layer's output.
    composition: how the item table is made of smaller ones (`kdjax.composed`); None for its own.
    dtype: of the computation; gates and states stay float32.

  Reference:
    B. Hidasi et al., Session-based Recommendations with Recurrent Neural Networks, ICLR 2016,
    arXiv:1511.06939. Deviation: input and output share one item table, as the authors later
    recommend (B. Hidasi, A. Karatzoglou, CIKM 2018, arXiv:1706.03847, "constrained embeddings").
  """

  num_items: int
  dim: int = 64
  hidden_dim: int | Sequence[int] | None = None
  num_layers: int = 1
  dropout: float = 0.1
  composition: Composition | tuple[Any, ...] | None = None
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, batch: Batch) -> Outputs:
    start = batch["positions"] == 0
    init = nn.initializers.normal(self.dim**-0.5)
    options = {"dtype": self.dtype, "embedding_init": init, "name": "item_embedding"}
    items = make_embed(self.composition, self.num_items, self.dim, **options)
    x = items(batch["items"])
    features: dict[str, Array] = {"embedding": x}
    x = Dropout(self.dropout, name="dropout")(x)
    for i, size in enumerate(per_layer(self.hidden_dim or self.dim, self.num_layers)):
      x = GRU(size, dtype=self.dtype, name=f"layer_{i}")(x, start)
      features[f"layer_{i}"] = x
      x = Dropout(self.dropout, name=f"dropout_{i}")(x)
    query = Dense(self.dim, dtype=self.dtype, name="out")(x)
    features["query"] = query
    return Outputs(FactoredLogits(query, items.table()), features)


def make_gru4rec(**sizes: Any) -> Model:
  """A GRU4Rec as a pair of pure functions.

  Args:
    sizes: the fields of `GRU4Rec`; only `num_items` has no default.

  Returns:
    Model on packed rows; `apply` gives `FactoredLogits` of `[B, L, dim]` queries.

  Raises:
    TypeError: if a size has another name. ValueError: by `init`, if there are more or fewer sizes
      than layers.
  """
  return from_linen(GRU4Rec(**sizes))


def gru4rec_axes(sizes: Sizes) -> Params:
  """Names the axes of its params, for `kdjax.prune.shrink`: `dim` and `layer_0/hidden`, ...

  A unit whose weights are 0 keeps the state 0, so shrunk outputs equal masked outputs.
  """
  module = GRU4Rec(**sizes)
  axes: dict[str, Any] = {"item_embedding": embed_axes(module.composition, "dim")}
  below = "dim"
  for i in range(module.num_layers):
    axes[f"layer_{i}"] = cell_axes(f"layer_{i}/hidden", below)
    below = f"layer_{i}/hidden"
  return axes | {"out": {"kernel": (below, "dim"), "bias": ("dim",)}}


def gru4rec_sizes(params: Mapping[str, Any], sizes: Sizes) -> Sizes:
  """The sizes with which `make_gru4rec` takes `params` that were shrunk from `sizes`."""
  hidden = recurrent_widths(params)
  dim = embed_width(params["item_embedding"])
  new = {"dim": dim, "hidden_dim": collapse(hidden), "num_layers": len(hidden)}
  return sizes_of(GRU4Rec(**sizes)) | new
