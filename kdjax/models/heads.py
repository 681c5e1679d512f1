"""More heads on a sequential recommender: users' profiles, like items, demand; one body for all."""

from typing import Any

import jax
import jax.numpy as jnp

from kdjax.models.linen import Sizes
from kdjax.quant.dot import dot
from kdjax.types import Array, Batch, Model, Outputs, Params

HEADS = ("profile_dim", "similarity_dim", "demand")


def with_heads(
  model: Model, *, profile_dim: int = 0, similarity_dim: int = 0, demand: bool = False
) -> Model:
  r"""The same model with linear heads on its query q and its item table E, beside the logits.

  - `profile` $q W_p + b_p$ `[..., profile_dim]`, what is known of a user;
  - `similarity` $E W_s + b_s$ `[V, similarity_dim]`, whose cosines tell which items are alike;
  - `demand` $E w + b$ `[V]`, a logit of each item's share of all demand.

  They are features of the outputs, and their params the leaves under `heads`: pruned, quantised and
  saved with the rest. Logits are those of the model alone.

  Args:
    model: gives `FactoredLogits` and a feature `query`.
    profile_dim: width of the profile; 0 for no such head.
    similarity_dim: width of the items' vectors; 0 for no such head.
    demand: whether there is a head of demand.

  Returns:
    Model.

  Example:
    >>> from kdjax.models import make_sasrec
    >>> model = with_heads(make_sasrec(num_items=9, dim=8), profile_dim=3, demand=True)
    >>> row = jnp.arange(4)[None]
    >>> batch = {"items": row, "segments": jnp.ones_like(row), "positions": row}
    >>> features = model.apply(model.init(jax.random.key(0), batch), batch).features
    >>> features["profile"].shape, features["demand"].shape
    ((1, 4, 3), (9,))

  Reference:
    R. Caruana, Multitask Learning, Machine Learning 28, 1997 (one body, a head a task).
  """
  widths = {"profile": profile_dim, "similarity": similarity_dim, "demand": int(demand)}
  widths = {name: width for name, width in widths.items() if width}

  def init(key: Array, batch: Batch) -> Params:
    params = model.init(key, batch)
    outputs = jax.eval_shape(model.apply, params, batch)
    dim = outputs.features["query"].shape[-1]
    heads = {}
    for nth, (name, width) in enumerate(widths.items()):
      shape, own = (dim, width), jax.random.fold_in(key, nth + 1)
      kernel = jax.nn.initializers.lecun_normal()(own, shape, jnp.float32)
      heads[name] = {"kernel": kernel, "bias": jnp.zeros(width, jnp.float32)}
    return {**params, "heads": heads}

  def apply(params: Params, batch: Batch, *, key: Array | None = None) -> Outputs:
    own = {name: leaf for name, leaf in params.items() if name != "heads"}
    outputs = model.apply(own, batch, key=key)
    table, query = outputs.logits.table, outputs.features["query"]
    return outputs._replace(
      features={**outputs.features, **apply_heads(params["heads"], query, table)}
    )

  return Model(init, apply)


def apply_heads(heads: Params, query: Array, table: Any) -> dict[str, Array]:
  """What the heads of `with_heads` say of queries and of the items.

  Args:
    heads: their params, `params["heads"]`.
    query: float `[..., d]`.
    table: float `[V, d]`, or a `QTensor`.

  Returns:
    `profile` float32 `[..., P]`, `similarity` `[V, S]`, `demand` `[V]`, those that there are.
  """
  found = {}
  for name, leaf in heads.items():
    x = query if name == "profile" else jnp.asarray(table)
    made = dot(x, leaf["kernel"]).astype(jnp.float32)
    made = made + jnp.broadcast_to(jnp.asarray(leaf["bias"], jnp.float32), made.shape)
    found[name] = made[:, 0] if name == "demand" else made
  return found


def split_heads(sizes: Sizes) -> tuple[Sizes, Sizes]:
  """The sizes of the model itself, and those of its heads: `HEADS`."""
  return (
    {name: size for name, size in sizes.items() if name not in HEADS},
    {name: size for name, size in sizes.items() if name in HEADS},
  )


def head_axes(heads: Sizes) -> Params:
  """Names the axes of the heads' params, for `kdjax.prune.shrink`: `dim` of the model."""
  of = {"profile": "profile_dim", "similarity": "similarity_dim", "demand": "demand"}
  layer = {"kernel": ("dim", None), "bias": (None,)}
  return {name: dict(layer) for name, size in of.items() if heads.get(size)}
