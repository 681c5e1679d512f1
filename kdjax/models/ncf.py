"""Neural collaborative filtering: a product of vectors beside a multi-layer perceptron."""

from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from kdjax.composed import Composition, embed_axes, embed_width, make_embed
from kdjax.layers import Dense, Dropout
from kdjax.models.linen import Sizes, from_linen, sizes_of
from kdjax.types import Array, Batch, Model, Outputs, Params


class NCF(nn.Module):
  r"""NeuMF: $\text{logit}_{ui} = w^\top (p_u \odot q_i) + v^\top m_n + b$.

  $m_0 = \mathrm{relu}(p'_u A + q'_i B + a)$, $m_j = \mathrm{relu}(m_{j-1} W_j + a_j)$; the two
  parts have tables of their own. The first layer is applied to users and items apart (it is
  linear in their concatenation), so that a catalogue passes through it once, not once a user.

  Reads `user` int `[B]` and, if present, `candidates` int `[B, C]`. Logits are float32 `[B, C]`, or
  `[B, V]` over the whole catalogue; that builds `[B, V, hidden]`, so ask for few users at a time.

  Features: `gmf` `[B, C, dim]` and `hidden_0`, ... `[B, C, hidden]`.

  Attributes:
    num_users: U.
    num_items: V, the catalogue.
    dim: width of the tables of the product.
    mlp_dim: width of the tables of the perceptron; None for `dim`.
    hidden: widths of its layers; () leaves the product alone (GMF).
    dropout: rate on hidden layers.
    composition: how each table is made of smaller ones (`kdjax.composed`); None for its own.
    dtype: of the computation.

  Reference:
    X. He et al., Neural Collaborative Filtering, WWW 2017, arXiv:1708.05031.
  """

  num_users: int
  num_items: int
  dim: int = 32
  mlp_dim: int | None = None
  hidden: Sequence[int] = (64, 32, 16)
  dropout: float = 0.0
  composition: Composition | tuple[Any, ...] | None = None
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, batch: Batch) -> Outputs:
    users, items = batch["user"], batch.get("candidates")
    if items is None:
      items = jax.lax.iota(jnp.int32, self.num_items)[None]

    def embed(count: int, dim: int, name: str, ids: Array) -> Array:
      init = nn.initializers.normal(dim**-0.5)
      options = {"dtype": self.dtype, "embedding_init": init, "name": name}
      return make_embed(self.composition, count, dim, **options)(ids)

    def dense(size: int, name: str, *, use_bias: bool = True) -> Dense:
      return Dense(size, use_bias=use_bias, dtype=self.dtype, name=name)

    user = embed(self.num_users, self.dim, "user_gmf", users)[:, None]
    gmf = user * embed(self.num_items, self.dim, "item_gmf", items)
    features = {"gmf": gmf}
    logits = dense(1, "gmf_out")(gmf)
    if self.hidden:
      mlp_dim = self.mlp_dim or self.dim
      user = embed(self.num_users, mlp_dim, "user_mlp", users)[:, None]
      item = embed(self.num_items, mlp_dim, "item_mlp", items)
      x = dense(self.hidden[0], "user_in")(user)
      x = x + dense(self.hidden[0], "item_in", use_bias=False)(item)
      for j, size in enumerate(self.hidden):
        x = nn.relu(x if j == 0 else dense(size, f"hidden_{j}")(x))
        features[f"hidden_{j}"] = x
        x = Dropout(self.dropout, name=f"dropout_{j}")(x)
      logits = logits + dense(1, "mlp_out", use_bias=False)(x)
    return Outputs(logits[..., 0].astype(jnp.float32), features)


def make_ncf(**sizes: Any) -> Model:
  """A NeuMF as a pair of pure functions.

  Args:
    sizes: the fields of `NCF`; `num_users` and `num_items` have no default.

  Returns:
    Model on pair batches; `apply` gives float32 logits `[B, C]` of `candidates`, or `[B, V]`.

  Raises:
    TypeError: if a size has another name.
  """
  return from_linen(NCF(**sizes))


def ncf_axes(sizes: Sizes) -> Params:
  """Names the axes of its params: `dim`, `mlp_dim`, `hidden_0`, ...; shrunk equals masked."""
  hidden, composition = NCF(**sizes).hidden, sizes.get("composition")
  axes: dict[str, Any] = {
    "user_gmf": embed_axes(composition, "dim"),
    "item_gmf": embed_axes(composition, "dim"),
    "gmf_out": {"kernel": ("dim", None), "bias": (None,)},
  }
  if not hidden:
    return axes
  axes |= {
    "user_mlp": embed_axes(composition, "mlp_dim"),
    "item_mlp": embed_axes(composition, "mlp_dim"),
    "user_in": {"kernel": ("mlp_dim", "hidden_0"), "bias": ("hidden_0",)},
    "item_in": {"kernel": ("mlp_dim", "hidden_0")},
    "mlp_out": {"kernel": (f"hidden_{len(hidden) - 1}", None)},
  }
  for j in range(1, len(hidden)):
    name = f"hidden_{j}"
    axes[name] = {"kernel": (f"hidden_{j - 1}", name), "bias": (name,)}
  return axes


def ncf_sizes(params: Mapping[str, Any], sizes: Sizes) -> Sizes:
  """The sizes with which `make_ncf` takes `params` that were shrunk from `sizes`."""
  old = sizes_of(NCF(**sizes))
  new: Sizes = {"dim": embed_width(params["item_gmf"])}
  if old["hidden"]:
    first = [params["item_in"]["kernel"].shape[1]]
    rest = [params[f"hidden_{j}"]["kernel"].shape[1] for j in range(1, len(old["hidden"]))]
    new |= {"mlp_dim": embed_width(params["item_mlp"]), "hidden": (*first, *rest)}
  return old | new
