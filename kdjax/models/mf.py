"""Matrix factorisation: a vector a user, a vector and a bias an item."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from kdjax.composed import Composition, embed_axes, embed_width, make_embed
from kdjax.layers import param_of
from kdjax.models.linen import Sizes, from_linen, sizes_of
from kdjax.types import Batch, FactoredLogits, Model, Outputs, Params


class MF(nn.Module):
  r"""$\text{logits}_{ui} = p_u^\top q_i + b_i$. Reads `user` int `[B]`.

  Features: `query` `[B, dim]`, the users' vectors.

  Attributes:
    num_users: U; an id past it gives NaN, PAD the zero vector (popularity alone).
    num_items: V, the catalogue.
    dim: width of both tables.
    composition: how each table is made of smaller ones (`kdjax.composed`); None for its own.
    dtype: of the computation.

  Reference:
    S. Rendle et al., BPR: Bayesian Personalized Ranking from Implicit Feedback, UAI 2009,
    arXiv:1205.2618 (BPR-MF).
  """

  num_users: int
  num_items: int
  dim: int = 64
  composition: Composition | tuple[Any, ...] | None = None
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, batch: Batch) -> Outputs:
    def embed(count: int, name: str) -> Any:
      options = {"dtype": self.dtype, "embedding_init": nn.initializers.normal(0.1), "name": name}
      return make_embed(self.composition, count, self.dim, **options)

    query = embed(self.num_users, "user_embedding")(batch["user"])
    items = embed(self.num_items, "item_embedding")
    bias = param_of(self, "item_bias", nn.initializers.zeros, (self.num_items,))
    return Outputs(FactoredLogits(query, items.table(), bias), {"query": query})


def make_mf(**sizes: Any) -> Model:
  """A matrix factorisation as a pair of pure functions.

  Args:
    sizes: the fields of `MF`; `num_users` and `num_items` have no default.

  Returns:
    Model on pair batches; `apply` gives `FactoredLogits` of `[B, dim]` queries.

  Raises:
    TypeError: if a size has another name.
  """
  return from_linen(MF(**sizes))


def mf_axes(sizes: Sizes) -> Params:
  """Names the one axis to shrink, `dim`; shrunk outputs equal masked outputs."""
  table = embed_axes(sizes.get("composition"), "dim")
  return {"user_embedding": table, "item_embedding": table, "item_bias": (None,)}


def mf_sizes(params: Mapping[str, Any], sizes: Sizes) -> Sizes:
  """The sizes with which `make_mf` takes `params` that were shrunk from `sizes`."""
  return sizes_of(MF(**sizes)) | {"dim": embed_width(params["item_embedding"])}
