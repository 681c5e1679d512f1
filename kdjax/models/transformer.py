"""The pre-norm transformer block that the sequence models share."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from kdjax.layers import Attention, Dense, Dropout, LayerNorm
from kdjax.types import Array


class Block(nn.Module):
  """`x += drop(attention(norm_1(x)))`, then `x += drop(down(drop(activation(up(norm_2(x))))))`."""

  num_heads: int
  head_dim: int
  mlp_dim: int
  causal: bool
  activation: Callable[[Array], Array]
  dropout: float
  norm_width: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array, segments: Array) -> tuple[Array, Array]:
    """`x` float `[B, L, dim]` to the same, and the attention weights `[B, num_heads, L, L]`."""

    def norm(name: str) -> LayerNorm:
      return LayerNorm(width=self.norm_width, dtype=self.dtype, name=name)

    drop = self.dropout
    attention = Attention(
      self.num_heads, self.head_dim, self.causal, drop, dtype=self.dtype, name="attention"
    )
    y, weights = attention(norm("norm_1")(x), segments)
    x = x + Dropout(drop, name="dropout_1")(y)
    y = Dense(self.mlp_dim, dtype=self.dtype, name="up")(norm("norm_2")(x))
    y = Dropout(drop, name="dropout_2")(self.activation(y))
    y = Dense(x.shape[-1], dtype=self.dtype, name="down")(y)
    return x + Dropout(drop, name="dropout_3")(y), weights
