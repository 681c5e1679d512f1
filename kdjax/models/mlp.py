"""Pointwise click prediction from dense and categorical features; linear without hidden layers."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from kdjax.layers import Dense, Dropout, Embed
from kdjax.models.linen import Sizes, from_linen, sizes_of
from kdjax.prune.shrink import Axis
from kdjax.types import Array, Batch, Model, Outputs, Params


class MLP(nn.Module):
  r"""$h_0 = \mathrm{relu}(d A + [e_{c_1}, \dots, e_{c_K}] B + a)$, more layers, then one logit.

  With `hidden=()` it is logistic regression: $\text{logit} = d^\top w + \sum_k w_{c_k} + b$, a
  weight for every value of every column. Reads `dense` float `[B, num_dense]` and `categorical` int
  `[B, K]`; gives logits float32 `[B]`. All columns share one table, column k from row
  $\sum_{j<k}$ `cardinalities[j]` on. A negative category is an unknown one (zero vector); one past
  its column gives NaN, which stays visible.

  Features: `embedding` `[B, K, dim]` and `hidden_0`, ...

  Attributes:
    num_dense: F, dense columns; 0 for none.
    cardinalities: how many values each categorical column has; () for none.
    dim: width of a category's vector; 1 where `hidden` is ().
    hidden: widths of the hidden layers.
    dropout: rate on hidden layers.
    dtype: of the computation.

  Reference:
    H.-T. Cheng et al., Wide & Deep Learning for Recommender Systems, 2016, arXiv:1606.07792: the
    deep part, or with `hidden=()` the wide part without crossed columns.
  """

  num_dense: int = 0
  cardinalities: Sequence[int] = ()
  dim: int = 16
  hidden: Sequence[int] = (64, 32)
  dropout: float = 0.0
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, batch: Batch) -> Outputs:
    if not (self.num_dense or self.cardinalities):
      raise ValueError("an mlp needs num_dense or cardinalities")
    features: dict[str, Array] = {}
    terms = []
    width = self.hidden[0] if self.hidden else 1

    def dense(size: int, name: str, *, use_bias: bool = True) -> Dense:
      return Dense(size, use_bias=use_bias, dtype=self.dtype, name=name)

    if self.cardinalities:
      rows = self._categories(batch["categorical"])
      features["embedding"] = rows
      if self.hidden:
        rows = rows.reshape(rows.shape[0], -1)
        terms.append(dense(width, "categorical_in", use_bias=False)(rows))
      else:
        terms.append(rows.sum(axis=1))
    if self.num_dense:
      terms.append(dense(width, "dense_in", use_bias=False)(batch["dense"]))
    bias = jnp.asarray(self.param("bias_in", nn.initializers.zeros, (width,)), self.dtype)
    x = sum(terms) + bias[None]
    for j, size in enumerate(self.hidden):
      x = nn.relu(x if j == 0 else dense(size, f"hidden_{j}")(x))
      features[f"hidden_{j}"] = x
      x = Dropout(self.dropout, name=f"dropout_{j}")(x)
    if self.hidden:
      x = dense(1, "out")(x)
    return Outputs(x[:, 0].astype(jnp.float32), features)

  def _categories(self, ids: Array) -> Array:
    """Vectors `[B, K, dim]` of `ids` `[B, K]`, each in the rows of its column."""
    sizes = np.asarray(self.cardinalities)
    first = np.asarray([0, *itertools.accumulate(self.cardinalities)][:-1], np.int32)
    total = int(sizes.sum())
    row = jnp.where(ids < 0, ids, jnp.where(ids < sizes[None], ids + first[None], total))
    dim = self.dim if self.hidden else 1
    init = nn.initializers.normal(0.1) if self.hidden else nn.initializers.zeros
    return Embed(total, dim, dtype=self.dtype, embedding_init=init, name="category_embedding")(row)


def make_mlp(**sizes: Any) -> Model:
  """A click model as a pair of pure functions.

  Args:
    sizes: the fields of `MLP`.

  Returns:
    Model on click batches; `apply` gives float32 logits `[B]`.

  Raises:
    TypeError: if a size has another name. ValueError: by `init` and `apply`, if there is no column
      at all.

  Example:
    >>> import jax, jax.numpy as jnp
    >>> model = make_mlp(num_dense=2, cardinalities=(3, 5), hidden=())
    >>> batch = {"dense": jnp.ones([4, 2]), "categorical": jnp.zeros([4, 2], int)}
    >>> params = model.init(jax.random.key(0), batch)
    >>> model.apply(params, batch).logits.shape
    (4,)
  """
  return from_linen(MLP(**sizes))


def mlp_axes(sizes: Sizes) -> Params:
  """Names the axes of its params: `dim`, `hidden_0`, ...; a linear model has none to shrink."""
  module = MLP(**sizes)
  hidden = [f"hidden_{j}" for j in range(len(module.hidden))]
  first = hidden[0] if hidden else None
  axes: dict[str, Any] = {"bias_in": (first,)}
  if module.num_dense:
    axes["dense_in"] = {"kernel": (None, first)}
  if module.cardinalities:
    axes["category_embedding"] = {"embedding": (None, "dim" if hidden else None)}
    if hidden:
      columns = Axis("dim", repeat=len(module.cardinalities))
      axes["categorical_in"] = {"kernel": (columns, first)}
  for below, name in itertools.pairwise(hidden):
    axes[name] = {"kernel": (below, name), "bias": (name,)}
  if hidden:
    axes["out"] = {"kernel": (hidden[-1], None), "bias": (None,)}
  return axes


def mlp_sizes(params: Mapping[str, Any], sizes: Sizes) -> Sizes:
  """The sizes with which `make_mlp` takes `params` that were shrunk from `sizes`."""
  old = sizes_of(MLP(**sizes))
  if not old["hidden"]:
    return old
  rest = [params[f"hidden_{j}"]["kernel"].shape[1] for j in range(1, len(old["hidden"]))]
  new: Sizes = {"hidden": (params["bias_in"].shape[0], *rest)}
  if old["cardinalities"]:
    new["dim"] = params["category_embedding"]["embedding"].shape[1]
  return old | new
