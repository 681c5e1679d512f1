"""The pre-norm blocks of causal language models, from GPT-2's to Gemma's."""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from kdjax.layers import Dense, Dropout, LayerNorm, RMSNorm, attend, segment_mask
from kdjax.models.rotary import rotate
from kdjax.models.text_head import ACTIVATIONS
from kdjax.types import Array


class BlockSizes(NamedTuple):
  """What one block of a `Decoder` is made with, by the names of its fields."""

  num_heads: int
  num_kv_heads: int
  head_dim: int
  mlp_dim: int
  frequencies: tuple[float, ...] | None
  window: int | None
  query_scale: float
  attention_cap: float | None
  attention_bias: bool
  out_bias: bool
  mlp_bias: bool
  head_norms: bool
  post_norms: bool
  gated: bool
  activation: str
  dropout: float
  rms_norm: bool
  norm_offset: float
  epsilon: float
  norm_width: int | None
  dtype: Any


def norm_of(sizes: Any, name: str) -> nn.Module:
  """A norm of the residual stream, by the fields of a `Decoder` or of a `BlockSizes`."""
  width, epsilon, dtype = sizes.norm_width, sizes.epsilon, sizes.dtype
  if sizes.rms_norm:
    return RMSNorm(width, epsilon, sizes.norm_offset, dtype=dtype, name=name)
  return LayerNorm(width, epsilon, dtype=dtype, name=name)


class CausalAttention(nn.Module):
  """Attention with grouped queries, rotary positions, norms of queries and keys, and a window.

  `num_heads // num_kv_heads` adjacent query heads share a head of keys and values.
  """

  sizes: BlockSizes

  @nn.compact
  def __call__(
    self, x: Array, segments: Array, positions: Array, memory: tuple[Array, ...] | None
  ) -> tuple[Array, dict[str, Array], tuple[Array, Array]]:
    """`x` `[B, L, dim]` to the same, features by name, and the keys and values to remember.

    `memory`: keys and values `[B, kv heads, S, head_dim]`, segments `[B, S]` with those of `x`, and
    the index of the first position of `x`.
    """
    s, (batch, length) = self.sizes, segments.shape
    flat = {
      features: Dense(n * s.head_dim, s.attention_bias, dtype=s.dtype, name=name)(x)
      for features, name, n in (
        ("queries", "query", s.num_heads),
        ("keys", "key", s.num_kv_heads),
        ("values", "value", s.num_kv_heads),
      )
    }
    query, key, value = (
      y.reshape(batch, length, -1, s.head_dim).swapaxes(1, 2) for y in flat.values()
    )
    if s.head_norms:
      norm = lambda name: RMSNorm(None, s.epsilon, s.norm_offset, dtype=s.dtype, name=name)  # noqa: E731
      query, key = norm("query_norm")(query), norm("key_norm")(key)
    if s.frequencies is not None:
      frequencies = jnp.asarray(s.frequencies, jnp.float32)
      query, key = (rotate(y, positions, frequencies) for y in (query, key))
    query = query * jnp.asarray(s.query_scale, s.dtype)
    seen, start = segments, jnp.int32(0)
    if memory is not None:
      keys, values, seen, start = memory
      key = jax.lax.dynamic_update_slice_in_dim(keys, key.astype(keys.dtype), start, 2)
      value = jax.lax.dynamic_update_slice_in_dim(values, value.astype(values.dtype), start, 2)
    mask = segment_mask(segments, causal=True, window=s.window, keys=seen, start=start)
    y, weights = attend(
      query.reshape(batch, s.num_kv_heads, -1, length, s.head_dim),
      key.astype(s.dtype)[:, :, None],
      value.astype(s.dtype)[:, :, None],
      mask[:, None, None],
      causal=memory is None,
      cap=s.attention_cap,
      drop=lambda w: Dropout(s.dropout)(w),
    )
    y = y.reshape(batch, s.num_heads, length, s.head_dim).swapaxes(1, 2)
    y = y.reshape(batch, length, s.num_heads * s.head_dim)
    y = Dense(x.shape[-1], s.out_bias, dtype=s.dtype, name="out")(y)
    weights = weights.reshape(batch, s.num_heads, length, weights.shape[-1])
    return y, {"attention": weights, **flat}, (key, value)


class DecoderBlock(nn.Module):
  """`x += drop(attention(norm_1(x)))`, then `x += drop(feed_forward(norm_2(x)))`; see `Decoder`."""

  sizes: BlockSizes

  @nn.compact
  def __call__(
    self, x: Array, segments: Array, positions: Array, memory: tuple[Array, ...] | None
  ) -> tuple[Array, dict[str, Array], tuple[Array, Array]]:
    """As `CausalAttention`."""
    s, dim = self.sizes, x.shape[-1]

    def dense(name: str, features: int) -> Dense:
      return Dense(features, s.mlp_bias, dtype=s.dtype, name=name)

    def add(x: Array, y: Array, number: int) -> Array:
      y = norm_of(s, f"post_norm_{number}")(y) if s.post_norms else y
      return x + Dropout(s.dropout, name=f"dropout_{number}")(y)

    attention = CausalAttention(s, name="attention")
    y, parts, remembered = attention(norm_of(s, "norm_1")(x), segments, positions, memory)
    x = add(x, y, 1)
    y = norm_of(s, "norm_2")(x)
    f, up = ACTIVATIONS[s.activation], dense("up", s.mlp_dim)(y)
    y = f(dense("gate", s.mlp_dim)(y)) * up if s.gated else f(up)
    return add(x, dense("down", dim)(y), 2), parts, remembered
