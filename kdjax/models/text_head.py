"""What encoders of text end in: pooling, an embedding, or labels."""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from kdjax.layers import Dense, Dropout, unit_length
from kdjax.types import Array, Outputs

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
  "gelu": lambda x: nn.gelu(x, approximate=False),
  "gelu_tanh": nn.gelu,
  "relu": nn.relu,
  "silu": nn.silu,
  "tanh": jnp.tanh,
}
POOLINGS = ("mean", "first", "max", "last")


def pool(x: Array, segments: Array, *, how: str = "mean") -> Array:
  """One vector a text from one a token.

  Args:
    x: float `[B, L, d]`.
    segments: int `[B, L]`, 0 where there is no token.
    how: "mean" over the tokens, "max" over them, the "first" position, or the "last" token.

  Returns:
    float32 `[B, d]`; zeros for a row without tokens, but for "first".

  Raises:
    ValueError: if `how` is none of these.

  Example:
    >>> x = jnp.array([[[1.0], [3.0], [9.0]]])
    >>> [float(pool(x, jnp.array([[1, 1, 0]]), how=how)[0, 0]) for how in POOLINGS]
    [2.0, 1.0, 3.0, 3.0]
  """
  x = x.astype(jnp.float32)
  if how == "first":
    return x[:, 0]
  real = (segments != 0)[..., None]
  if how == "mean":
    return jnp.sum(jnp.where(real, x, 0.0), axis=1) / jnp.maximum(jnp.sum(real, axis=1), 1)
  if how == "max":
    return jnp.where(jnp.any(real, axis=1), jnp.max(jnp.where(real, x, -jnp.inf), axis=1), 0.0)
  if how == "last":
    later = jnp.cumsum(real[:, ::-1], axis=1)[:, ::-1]  # Tokens from here on.
    return jnp.sum(jnp.where(real & (later == 1), x, 0.0), axis=1)
  raise ValueError(f"pooling={how!r}: there are {', '.join(POOLINGS)}")


def embedding(module: Any, x: Array, segments: Array, features: Mapping[str, Array]) -> Outputs:
  """The head `pool`: one vector a text, by the module's `pooling`, `normalize` and `dtype`."""
  query = pool(x, segments, how=module.pooling)
  query = unit_length(query) if module.normalize else query
  return Outputs(query, {**features, "query": query.astype(module.dtype)})


def embedding_or_labels(module: Any, query: Array, features: Mapping[str, Array]) -> Outputs:
  """The heads of small encoders, inside their `__call__`.

  `pool`: `out(query)` where `out_dim` is given, of length 1 where `normalize`. `labels`: a
  classifier of `query` with dropout.
  """
  if module.head == "labels":
    features = {**features, "query": query}
    query = Dropout(module.dropout, name="dropout_head")(query)
    logits = Dense(module.num_labels, dtype=module.dtype, name="classifier")(query)
    return Outputs(logits.astype(jnp.float32), features)
  if module.head != "pool":
    raise ValueError(f"head={module.head!r}: there are pool, labels")
  if module.out_dim is not None:
    query = Dense(module.out_dim, dtype=module.dtype, name="out")(query)
  logits = unit_length(query) if module.normalize else query.astype(jnp.float32)
  return Outputs(logits, {**features, "query": logits.astype(module.dtype)})


def known(field: str, name: str, table: Mapping[str, Any]) -> Any:
  """The entry of that name; else a `ValueError` that lists all."""
  if name not in table:
    raise ValueError(f"{field}={name!r}: there are {', '.join(table)}")
  return table[name]
