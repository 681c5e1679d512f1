"""Two towers: a user as the mean of past items, an item as its id and its features."""

from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from kdjax.composed import Composition, embed_axes, embed_width, make_embed
from kdjax.layers import Dense, Dropout, segment_mask, unit_length
from kdjax.models.linen import Sizes, from_linen, sizes_of
from kdjax.rows import GatheredRows
from kdjax.types import Array, Batch, FactoredLogits, Model, Outputs, Params


class Tower(nn.Module):
  """`relu` layers of widths `hidden`, then a linear one of `out_dim`."""

  hidden: Sequence[int]
  out_dim: int
  dropout: float
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """`x` float `[..., in]` to `[..., out_dim]`."""
    for j, size in enumerate(self.hidden):
      x = nn.relu(Dense(size, dtype=self.dtype, name=f"hidden_{j}")(x))
      x = Dropout(self.dropout, name=f"dropout_{j}")(x)
    return Dense(self.out_dim, dtype=self.dtype, name="out")(x)


class TwoTower(nn.Module):
  r"""$\text{logits}_{ti} = f\big(\frac{1}{t + 1} \sum_{s \le t} x_{i_s}\big)^\top g(x_i)$.

  $x_i = e_i + W_f\, \phi_i$ with the item features $\phi_i$, if any; f and g are perceptrons. The
  mean runs over the items of the segment up to and including the position. With `normalize` both
  towers end on the unit sphere and logits are divided by `temperature`.

  Reads `items`, `segments`, `positions` int `[B, L]`, and `item_features` float `[V, F]` if the
  model was initialised with it. Features of the catalogue are data, the same in every batch: they
  are neither trained nor saved nor compiled in, so they come with the batch. The table of
  `FactoredLogits` is the item tower over the whole catalogue: compute it once to serve. In a step
  that reads tables by rows (`kdjax.rows`) it is the tower over those rows.

  Features: `history` `[B, L, dim]` (the mean) and `query` `[B, L, out_dim]`.

  Attributes:
    num_items: V, the catalogue.
    dim: width of item embeddings.
    hidden: widths of the hidden layers of either tower.
    item_hidden: of the item tower, where it differs.
    out_dim: width of query and table; None for `dim`.
    normalize: whether logits are cosines over `temperature`.
    temperature: positive; used with `normalize` only.
    dropout: rate on hidden layers.
    composition: how the item table is made of smaller ones (`kdjax.composed`); None for its own.
    dtype: of the computation.

  Reference:
    P. Covington et al., Deep Neural Networks for YouTube Recommendations, RecSys 2016 (the mean of
    watched items); X. Yi et al., Sampling-Bias-Corrected Neural Modeling for Large Corpus Item
    Recommendations, RecSys 2019 (two towers, normalised, with a temperature).
  """

  num_items: int
  dim: int = 64
  hidden: Sequence[int] = (64,)
  item_hidden: Sequence[int] | None = None
  out_dim: int | None = None
  normalize: bool = False
  temperature: float = 0.05
  dropout: float = 0.0
  composition: Composition | tuple[Any, ...] | None = None
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, batch: Batch) -> Outputs:
    out_dim, dtype = self.out_dim or self.dim, self.dtype
    init = nn.initializers.normal(self.dim**-0.5)
    options = {"dtype": dtype, "embedding_init": init, "name": "item_embedding"}
    embed = make_embed(self.composition, self.num_items, self.dim, **options)
    gathered: Any = embed.table()
    some = isinstance(gathered, GatheredRows)  # The item tower then sees those items alone.
    values = gathered.values if some else embed(jax.lax.iota(jnp.int32, self.num_items))
    if "item_features" in batch:
      known = batch["item_features"]
      known = known[jnp.minimum(gathered.ids, self.num_items - 1)] if some else known
      values = values + Dense(self.dim, dtype=dtype, name="feature_in")(known)

    catalogue = gathered.replace(values) if some else values
    ids = batch["items"]
    rows = jnp.where((ids >= 0)[..., None], catalogue[jnp.maximum(ids, 0)], jnp.zeros([], dtype))
    seen = segment_mask(batch["segments"], causal=True).astype(dtype)
    total = jnp.einsum("blm,bmd->bld", seen, rows, preferred_element_type=jnp.float32)
    history = (total / (batch["positions"] + 1)[..., None]).astype(dtype)

    item_hidden = self.hidden if self.item_hidden is None else self.item_hidden
    query = Tower(self.hidden, out_dim, self.dropout, dtype=dtype, name="user")(history)
    table = Tower(item_hidden, out_dim, self.dropout, dtype=dtype, name="item")(values)
    if self.normalize:
      query, table = unit_length(query) / self.temperature, unit_length(table)
    query, table = query.astype(dtype), table.astype(dtype)
    table = gathered.replace(table) if some else table
    return Outputs(FactoredLogits(query, table), {"history": history, "query": query})


def make_two_tower(**sizes: Any) -> Model:
  """Two towers as a pair of pure functions.

  Args:
    sizes: the fields of `TwoTower`; only `num_items` has no default.

  Returns:
    Model on packed rows; `apply` gives `FactoredLogits` of `[B, L, out_dim]` queries.

  Raises:
    TypeError: if a size has another name.
  """
  return from_linen(TwoTower(**sizes))


def two_tower_axes(sizes: Sizes, *, item_features: bool = False) -> Params:
  """Names the axes of its params: `dim`, `out`, `user/hidden_0`, `item/hidden_0`, ...

  Shrunk outputs equal masked outputs for all of them: a zero changes neither a mean nor a length.

  Args:
    sizes: the fields of `TwoTower`.
    item_features: whether the model was initialised with them.
  """
  module = TwoTower(**sizes)
  item_hidden = module.hidden if module.item_hidden is None else module.item_hidden
  axes = {
    "item_embedding": embed_axes(module.composition, "dim"),
    "user": _tower_axes("user", len(module.hidden)),
    "item": _tower_axes("item", len(item_hidden)),
  }
  if item_features:
    axes["feature_in"] = {"kernel": (None, "dim"), "bias": ("dim",)}
  return axes


def _tower_axes(tower: str, num_layers: int) -> Params:
  names = ["dim", *(f"{tower}/hidden_{j}" for j in range(num_layers))]
  axes = {
    f"hidden_{j}": {"kernel": (names[j], names[j + 1]), "bias": (names[j + 1],)}
    for j in range(num_layers)
  }
  return axes | {"out": {"kernel": (names[-1], "out"), "bias": ("out",)}}


def two_tower_sizes(params: Mapping[str, Any], sizes: Sizes) -> Sizes:
  """The sizes with which `make_two_tower` takes `params` that were shrunk from `sizes`."""

  def hidden(tower: Mapping[str, Any]) -> tuple[int, ...]:
    return tuple(tower[f"hidden_{j}"]["kernel"].shape[1] for j in range(len(tower) - 1))

  return sizes_of(TwoTower(**sizes)) | {
    "dim": embed_width(params["item_embedding"]),
    "hidden": hidden(params["user"]),
    "item_hidden": hidden(params["item"]),
    "out_dim": params["user"]["out"]["kernel"].shape[1],
  }
