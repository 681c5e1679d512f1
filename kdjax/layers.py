"""The few Linen layers that accept int8 weights: dense, convolution, embedding, attention.

Norm and dropout too. Every weight of a `Dense`, `Conv` or `Embed` may be a `QTensor` in place of an
array: the products are then int8 by int8. `dtype` is that of the computation; parameters stay
float32, and so do softmax and the statistics of norms. Dropout is on exactly when the caller gave a
`dropout` key.
"""

import itertools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from kdjax.mesh_table import MeshTable
from kdjax.quant.conv import conv
from kdjax.quant.dot import dot
from kdjax.quant.qtensor import is_qtensor
from kdjax.rows import GatheredRows
from kdjax.types import Array

Initializer = Any  # (key, shape, dtype) -> Array.
NEGATIVE = -1e30  # A score no softmax sees, and finite: a masked row stays free of NaN.


def dropout(x: Array, rate: float, key: Array) -> Array:
  """Zeroes each entry with probability `rate` and divides the others by `1 - rate`.

  `y_i = x_i [h(i, key) < (1 - rate) 2^32] / (1 - rate)`, where h is a 32-bit integer hash of the
  entry's index, keyed twice with the 64 bits of `key`. Threefry spends a hundred operations on a
  word, in passes through memory; this spends a dozen, inside the loop that reads x: about 15 times
  faster on CPU. The bits do not depend on how an array is sharded.

  Args:
    x: float `[...]`, fewer than 2^32 entries.
    rate: probability of a zero, in [0, 1); exact to 2^-32.
    key: a PRNG key.

  Returns:
    Same shape and dtype as `x`.

  Raises:
    ValueError: if `rate` lies outside [0, 1).

  Example:
    >>> import jax, jax.numpy as jnp
    >>> y = dropout(jnp.ones([1000]), 0.5, jax.random.key(0))
    >>> sorted(set(y.tolist())), 450 < int((y > 0).sum()) < 550
    ([0.0, 2.0], True)

  Reference:
    N. Srivastava et al., Dropout: A Simple Way to Prevent Neural Networks from Overfitting,
    JMLR 15, 2014. The multipliers are C. Wellons' `triple32`, found by search for low bias.
  """
  if not 0 <= rate < 1:
    raise ValueError(f"a dropout rate lies in [0, 1), got {rate}")
  if rate == 0:
    return x
  words = jax.random.key_data(key) if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else key
  h = jnp.zeros(x.shape, jnp.uint32)
  stride = 1
  for axis in reversed(range(x.ndim)):
    h += jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis) * jnp.uint32(stride % 2**32)
    stride *= x.shape[axis]
  h += words[0]
  h = (h ^ (h >> 17)) * jnp.uint32(0xED5AD4BB) ^ words[-1]
  h = (h ^ (h >> 11)) * jnp.uint32(0xAC4C1B51)
  h = (h ^ (h >> 15)) * jnp.uint32(0x31848BAB)
  h ^= h >> 14
  keep = h < jnp.uint32(min(round((1 - rate) * 2**32), 2**32 - 1))
  return jnp.where(keep, x * jnp.asarray(1 / (1 - rate), x.dtype), jnp.zeros([], x.dtype))


class Dropout(nn.Module):
  """`dropout` with the caller's `dropout` key; the identity where none was given."""

  rate: float

  @nn.compact
  def __call__(self, x: Array) -> Array:
    if self.rate == 0 or not self.has_rng("dropout"):
      return x
    return dropout(x, self.rate, self.make_rng("dropout"))


def _biased(layer: Any, y: Array) -> Array:
  """`y` plus the layer's own bias."""
  bias = jnp.asarray(layer.param("bias", layer.bias_init, (layer.features,)), layer.dtype)
  return y + bias.reshape((1,) * (y.ndim - 1) + bias.shape)


class Dense(nn.Module):
  """`y = x W + b`, W `[in, features]` an array or a `QTensor`."""

  features: int
  use_bias: bool = True
  dtype: Any = jnp.float32
  kernel_init: Initializer = nn.initializers.lecun_normal()
  bias_init: Initializer = nn.initializers.zeros

  @nn.compact
  def __call__(self, x: Array) -> Array:
    kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.features))
    if not is_qtensor(kernel):
      kernel = kernel.astype(self.dtype)
    y = dot(x.astype(self.dtype), kernel).astype(self.dtype)
    return _biased(self, y) if self.use_bias else y


class Conv(nn.Module):
  """A convolution over the axes between batch and channels; its kernel an array or a `QTensor`.

  The kernel is `[*kernel_size, in / groups, features]`; see `kdjax.quant.conv`.
  """

  features: int
  kernel_size: tuple[int, ...]
  strides: int | tuple[int, ...] = 1
  padding: Any = "SAME"
  groups: int = 1
  use_bias: bool = True
  dtype: Any = jnp.float32
  kernel_init: Initializer = nn.initializers.lecun_normal()
  bias_init: Initializer = nn.initializers.zeros

  @nn.compact
  def __call__(self, x: Array) -> Array:
    shape = (*self.kernel_size, x.shape[-1] // self.groups, self.features)
    kernel = self.param("kernel", self.kernel_init, shape)
    if not is_qtensor(kernel):
      kernel = kernel.astype(self.dtype)
    options = {"strides": self.strides, "padding": self.padding, "groups": self.groups}
    y = conv(x.astype(self.dtype), kernel, **options).astype(self.dtype)
    return _biased(self, y) if self.use_bias else y


def param_of(module: nn.Module, name: str, init: Initializer, shape: tuple[int, ...]) -> Any:
  """A module's parameter: an array, a `QTensor`, `GatheredRows` of it or a `MeshTable`.

  Raises:
    ValueError: if one of the last two is of another shape.
  """
  found: Any = module.get_variable("params", name)
  if not isinstance(found, GatheredRows | MeshTable):
    value = module.param(name, init, shape)
    return value if is_qtensor(value) else jnp.asarray(value)
  if found.shape != shape:
    raise ValueError(f"a table of {found.shape} stands for {name} of {shape}")
  return found


def take_rows(table: Any, ids: Array, *, dtype: Any) -> Array:
  """Rows of a table `[V, d]`, an array or a `Table`, at `ids` int `[...]`: `[..., d]`.

  A negative id gives zeros, one past the end NaN; see `Embed`.
  """
  safe = jnp.clip(ids, 0, table.shape[0] - 1)
  rows = table.take(safe) if hasattr(table, "rdot") else table[safe]
  # Multiplied, not selected: what is masked in the table is then 0 for every id.
  there = jnp.where(ids < 0, 0.0, jnp.where(ids == safe, 1.0, jnp.nan)).astype(dtype)
  return rows.astype(dtype) * there[..., None]


class Embed(nn.Module):
  """Rows of a table `[num_embeddings, features]`: an array, a `QTensor` or `GatheredRows` of it.

  A negative id (PAD, MASK) gives a zero vector and no gradient; an id past the end gives NaN,
  which stays visible.
  """

  num_embeddings: int
  features: int
  dtype: Any = jnp.float32
  embedding_init: Initializer = nn.initializers.normal(0.02)

  def setup(self) -> None:
    shape = (self.num_embeddings, self.features)
    self.embedding = param_of(self, "embedding", self.embedding_init, shape)

  def __call__(self, ids: Array) -> Array:
    """`ids` int `[...]` to `[..., features]`."""
    return take_rows(self.embedding, ids, dtype=self.dtype)

  def table(self) -> Any:
    """The table for `FactoredLogits`: in `dtype`, or the `QTensor` itself; `GatheredRows` alike."""
    table = self.embedding
    return table if is_qtensor(table) else table.astype(self.dtype)


def unit_length(x: Array) -> Array:
  """`x / |x|` over the last axis, in float32; 0 stays 0, with gradient 0."""
  x = x.astype(jnp.float32)
  return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(x * x, axis=-1, keepdims=True), 1e-12))


class LayerNorm(nn.Module):
  """`y = scale (x - m) / sqrt(v + epsilon) + bias`, m and v the mean and variance of the last axis.

  Like Linen's, with one more field: `width`, the number of entries that the statistics divide by
  (None for as many as there are). A norm over the d' of d entries that survived shrinking, with
  `width=d`, computes `m = sum(x) / d` and `v = (sum (x - m)^2 + (d - d') m^2) / d`: what it gave
  when the others were 0.
  """

  width: int | None = None
  epsilon: float = 1e-6
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array) -> Array:
    size = x.shape[-1]
    width = size if self.width is None else self.width
    scale = jnp.asarray(self.param("scale", nn.initializers.ones, (size,)))
    bias = jnp.asarray(self.param("bias", nn.initializers.zeros, (size,)))
    x = x.astype(jnp.float32)
    mean = jnp.sum(x, -1, keepdims=True) / width
    centered = x - mean
    total = jnp.sum(centered * centered, -1, keepdims=True)
    if width != size:
      total += (width - size) * mean * mean
    y = centered * jax.lax.rsqrt(total / width + self.epsilon)
    over = (1,) * (x.ndim - 1) + (size,)
    return (y * scale.reshape(over) + bias.reshape(over)).astype(self.dtype)


class RMSNorm(nn.Module):
  """`y = (offset + scale) x / sqrt(m + epsilon)`, m the mean of the last axis' squares.

  `offset` is 0, or 1 where scales are stored around 0 (Gemma). `width` is what m divides the sum of
  squares by, None for as many entries as there are; see `LayerNorm`.

  Reference:
    B. Zhang, R. Sennrich, Root Mean Square Layer Normalization, NeurIPS 2019, arXiv:1910.07467.
  """

  width: int | None = None
  epsilon: float = 1e-6
  offset: float = 0.0
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array) -> Array:
    size = x.shape[-1]
    start = nn.initializers.constant(1.0 - self.offset)
    scale = jnp.asarray(self.param("scale", start, (size,)), jnp.float32)
    x = x.astype(jnp.float32)
    mean = jnp.sum(x * x, -1, keepdims=True) / (size if self.width is None else self.width)
    y = x * jax.lax.rsqrt(mean + self.epsilon)
    scaled = y * scale.reshape((1,) * (x.ndim - 1) + (size,))
    # Not y (offset + scale): a scale that is masked must add nothing of its own.
    return (scaled + self.offset * y if self.offset else scaled).astype(self.dtype)


def segment_mask(
  segments: Array,
  *,
  causal: bool,
  window: int | None = None,
  keys: Array | None = None,
  start: Array | int = 0,
) -> Array:
  """Who sees whom in packed rows: bool `[B, L, M]`, queries by keys.

  A position sees the positions of its own segment, if `causal` only those not after itself. Empty
  positions (segment 0) see each other, so that no row is all False.

  Args:
    segments: int `[B, L]`.
    causal: whether later positions are hidden.
    window: how many positions a causal query sees, itself among them; None for all.
    keys: int `[B, M]`, the segments of the keys; None for those of the queries.
    start: int `[]`, the index of the first query among the keys.
  """
  keys = segments if keys is None else keys
  mask = segments[:, :, None] == keys[:, None, :]
  if causal:
    query = start + jax.lax.iota(jnp.int32, segments.shape[1])[None, :, None]
    key = jax.lax.iota(jnp.int32, keys.shape[1])[None, None, :]
    mask = mask & (query >= key)
    if window is not None:
      mask = mask & (query - key < window)
  return mask


def attend(
  query: Array,
  key: Array,
  value: Array,
  visible: Array,
  *,
  causal: bool,
  cap: float | None = None,
  drop: Callable[[Array], Array] = lambda weights: weights,
) -> tuple[Array, Array]:
  r"""`softmax(c(q k^T)) v`, the softmax in float32, with $c(z) = \text{cap} \tanh(z/\text{cap})$.

  Args:
    query: float `[..., L, d]`, scaled already.
    key: float `[..., M, d]`; leading axes broadcast, so that several queries may share one.
    value: as `key`.
    visible: bool `[..., L, M]`, whether a query sees a key.
    causal: whether L = M and `visible` hides all keys after a query, whose scores are then left out
      by the chunk.
    cap: of the scores, None for none.
    drop: applied to the weights on their way to the values.

  Returns:
    Float `[..., L, d]`, and the weights before `drop`, `[..., L, M]`, in the dtype of `query`.
  """
  length, size = query.shape[-2], key.shape[-2]
  outs, weights = [], []
  for start, stop in _chunks(length, causal=causal):
    end = stop if causal else size  # Keys from here on are hidden from all of the chunk.
    scores = jnp.einsum(
      "...ld,...md->...lm",
      query[..., start:stop, :],
      key[..., :end, :],
      preferred_element_type="float32",
    )
    scores = scores if cap is None else cap * jnp.tanh(scores / cap)
    scores = jnp.where(visible[..., start:stop, :end], scores, NEGATIVE)
    w = jax.nn.softmax(scores, axis=-1).astype(query.dtype)
    outs.append(jnp.einsum("...lm,...md->...ld", drop(w), value[..., :end, :]))
    weights.append(jnp.pad(w, [(0, 0)] * (w.ndim - 1) + [(0, size - end)]))
  return jnp.concatenate(outs, axis=-2), jnp.concatenate(weights, axis=-2)


class Attention(nn.Module):
  """Multi-head self-attention on packed rows, with 2-D projections.

  `softmax(q_h k_h^T / sqrt(head_dim)) v_h` for every head h, concatenated and projected by `out`.
  The projections `query`, `key`, `value` `[in, num_heads * head_dim]` and `out`
  `[num_heads * head_dim, in]` may be `QTensor`; a head is `head_dim` adjacent columns, so that
  heads can be removed.

  Reference:
    A. Vaswani et al., Attention Is All You Need, NeurIPS 2017.
  """

  num_heads: int
  head_dim: int
  causal: bool
  dropout: float = 0.0
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array, segments: Array) -> tuple[Array, dict[str, Array]]:
    """Attends within segments.

    Args:
      x: float `[B, L, in]`.
      segments: int `[B, L]`.

    Returns:
      Output `[B, L, in]`, and by name `attention` `[B, num_heads, L, L]`, the weights before
      dropout, and `queries`, `keys` and `values` `[B, L, num_heads * head_dim]`, the heads
      concatenated.
    """
    batch, length = segments.shape
    width = self.num_heads * self.head_dim

    def heads(y: Array) -> Array:
      return y.reshape(batch, length, self.num_heads, self.head_dim).swapaxes(1, 2)

    dense = {
      features: Dense(width, dtype=self.dtype, name=name)(x)
      for features, name in (("queries", "query"), ("keys", "key"), ("values", "value"))
    }
    query, key, value = (heads(y) for y in dense.values())
    query = query * jnp.asarray(self.head_dim**-0.5, self.dtype)
    mask = segment_mask(segments, causal=self.causal)[:, None]
    drop = lambda weights: Dropout(self.dropout)(weights)  # noqa: E731 - one a chunk.
    y, weights = attend(query, key, value, mask, causal=self.causal, drop=drop)
    y = Dense(x.shape[-1], dtype=self.dtype, name="out")(
      y.swapaxes(1, 2).reshape(batch, length, width)
    )
    return y, {"attention": weights, **dense}


def _chunks(length: int, *, causal: bool) -> list[tuple[int, int]]:
  """Up to four runs of queries: a causal one skips the keys after it, 3/8 of all in the limit."""
  count = min(4, max(1, length // 48)) if causal else 1
  edges = [length * i // count for i in range(count + 1)]
  return list(itertools.pairwise(edges))
