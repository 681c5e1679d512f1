"""Ranges observed over real batches, as statistics that merge, and the scales that follow."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from kdjax.quant.integer import TINY, levels_of
from kdjax.quant.qtensor import dequantize, quantize
from kdjax.types import Array

BINS = 2048
_LEAST = -100  # Exponent of the smallest limit.


class AbsMax(NamedTuple):
  """The largest magnitude seen so far.

  Attributes:
    value: float32, of the rank of what was observed, size 1 along the shared axes.

  Example:
    >>> import jax.numpy as jnp
    >>> seen = absmax(jnp.array([[1.0, -3.0]]), axis=None).merge(
    ...   absmax(jnp.array([[2.54, 0.0]]), axis=None)
    ... )
    >>> round(float(seen.scale()[0, 0]), 5)
    0.02362
  """

  value: Array

  def merge(self, other: "AbsMax") -> "AbsMax":
    """The statistic of both sets of batches: associative, commutative; NaN stays visible."""
    return AbsMax(jnp.maximum(self.value, other.value))

  def scale(self, *, bits: int = 8) -> Array:
    """The symmetric scale of that range, for `quantize(..., scale=)`."""
    return jnp.maximum(self.value / levels_of(bits), TINY)


def absmax(x: Array, *, axis: int | tuple[int, ...] | None) -> AbsMax:
  """The largest `|x|` over the axes that share a scale.

  Args:
    x: float `[...]`.
    axis: as in `quantize`: the axes over which one scale is shared, None for all.

  Returns:
    AbsMax of one batch; merge those of several.

  Example:
    >>> import jax.numpy as jnp
    >>> absmax(jnp.array([[1.0, -3.0], [2.0, 0.0]]), axis=0).value.tolist()
    [[2.0, 3.0]]
  """
  return AbsMax(jnp.max(jnp.abs(x.astype(jnp.float32)), axis=axis, keepdims=True, initial=0.0))


class Histogram(NamedTuple):
  r"""How often magnitudes fall into equal bins up to a power of two.

  Bin i holds $|x| \in [i, i + 1) \cdot 2^e / 2048$, the last one its upper end too. Merging takes
  the larger limit: bins of the other are added up in pairs, as often as need be, which is exact.

  Attributes:
    counts: int32 `[2048]`.
    exponent: int32 `[]`, e.
  """

  counts: Array
  exponent: Array

  def merge(self, other: "Histogram") -> "Histogram":
    """That of both sets of batches: associative and commutative, exactly."""
    exponent = jnp.maximum(self.exponent, other.exponent)
    return Histogram(_coarser(self, exponent) + _coarser(other, exponent), exponent)

  def limit(self) -> Array:
    """float32 `[]`: the upper end of the last bin that is not empty."""
    last = BINS - jnp.argmax(self.counts[::-1] > 0)
    return jnp.where(jnp.any(self.counts > 0), last, 0) * self.width()

  def width(self) -> Array:
    """float32 `[]`: of a bin."""
    return jnp.ldexp(jnp.float32(1), self.exponent) / BINS  # Exact, which exp2 is not.


def histogram(x: Array) -> Histogram:
  """The magnitudes of one batch; merge those of several.

  Args:
    x: float `[...]`, finite, fewer than 2^31 of them.

  Returns:
    Histogram.

  Example:
    >>> import jax.numpy as jnp
    >>> seen = histogram(jnp.array([0.5, -0.5, 0.1])).merge(histogram(jnp.array([3.0])))
    >>> int(seen.exponent), int(seen.counts[256]), float(seen.limit())
    (2, 2, 3.001953125)
  """
  size = jnp.abs(x.astype(jnp.float32)).reshape(-1)
  largest = jnp.max(size, initial=0.0)
  _, exponent = jnp.frexp(largest)  # largest < 2^exponent; 0 is below any.
  exponent = jnp.where(largest > 0, jnp.maximum(exponent, _LEAST), _LEAST).astype(jnp.int32)
  index = jnp.minimum((jnp.ldexp(size, -exponent) * BINS).astype(jnp.int32), BINS - 1)
  return Histogram(jnp.zeros(BINS, jnp.int32).at[index].add(1), exponent)


def percentile_scale(seen: Histogram, *, percentile: float = 99.99, bits: int = 8) -> Array:
  """The scale of the range that holds so many per cent of the magnitudes.

  Args:
    seen: of all batches.
    percentile: in (0, 100].
    bits: of the values.

  Returns:
    float32 `[]`, symmetric; exact up to the width of a bin.

  Raises:
    ValueError: if `percentile` lies outside (0, 100].

  Example:
    >>> import jax.numpy as jnp
    >>> seen = histogram(jnp.array([1.0] * 99 + [100.0]))
    >>> round(float(percentile_scale(seen, percentile=99.0)) * 127, 1)
    1.1

  Reference:
    H. Wu et al., Integer Quantization for Deep Learning Inference, 2020, arXiv:2004.09602.
  """
  if not 0 < percentile <= 100:
    raise ValueError(f"percentile must lie in (0, 100], got {percentile}")
  total = jnp.cumsum(seen.counts.astype(jnp.float32))
  # Less a hair, lest rounding asks for one more.
  index = jnp.argmax(total >= percentile / 100 * (1 - 1e-6) * total[-1])
  return jnp.maximum((index + 1) * seen.width() / levels_of(bits), TINY)


def mse_scale(seen: Histogram, *, bits: int = 8) -> Array:
  r"""The scale whose rounding and clipping together cost the least squared error.

  $$s = \frac{1}{l} \arg\min_T \sum_i n_i (m_i - \hat m_i(T))^2$$

  over the upper ends T of the bins, m the middle of a bin, $\hat m$ its rounded and clipped value.

  Args:
    seen: of all batches.
    bits: of the values.

  Returns:
    float32 `[]`, symmetric.

  Reference:
    R. Banner, Y. Nahshan, D. Soudry, Post training 4-bit quantization of convolutional networks for
    rapid-deployment, NeurIPS 2019, arXiv:1810.05723 (there for densities, in closed form).
  """
  middles = (jnp.arange(BINS) + 0.5) * seen.width()
  counts = seen.counts.astype(jnp.float32)

  def error(end: Array) -> Array:
    scale = jnp.maximum(end * seen.width() / levels_of(bits), TINY)
    rounded = jnp.minimum(jnp.round(middles / scale), levels_of(bits)) * scale
    return jnp.sum(counts * (middles - rounded) ** 2)

  return _best(seen, error, bits)


def entropy_scale(seen: Histogram, *, bits: int = 8) -> Array:
  r"""The scale of the range after which the distribution is told apart least: relative entropy.

  For every range T of whole bins: P is the histogram up to T, what lies beyond in its last bin; Q
  has the counts of each of l equal pieces spread evenly over the bins of the piece that are not
  empty. The least $KL(P \Vert Q)$ wins.

  Args:
    seen: of all batches.
    bits: of the values.

  Returns:
    float32 `[]`, symmetric.

  Reference:
    S. Migacz, 8-bit Inference with TensorRT, GPU Technology Conference 2017.
  """
  counts = seen.counts.astype(jnp.float32)
  pieces = levels_of(bits) + 1
  index = jnp.arange(BINS)

  def divergence(end: Array) -> Array:
    inside = index < end
    beyond = jnp.sum(jnp.where(inside, 0.0, counts))
    p = jnp.where(inside, counts, 0.0) + jnp.where(index == end - 1, beyond, 0.0)
    piece = jnp.minimum(index * pieces // jnp.maximum(end, 1), pieces - 1)
    filled = inside & (counts > 0)
    total = jnp.zeros(pieces).at[piece].add(jnp.where(inside, counts, 0.0))
    number = jnp.zeros(pieces).at[piece].add(filled.astype(jnp.float32))
    q = jnp.where(filled, total[piece] / jnp.maximum(number[piece], 1), 0.0)
    p, q = p / jnp.maximum(jnp.sum(p), 1), q / jnp.maximum(jnp.sum(q), 1)
    # What Q says is impossible costs much, but not everything.
    terms = jnp.where(p > 0, p * (jnp.log(jnp.maximum(p, TINY)) - jnp.log(jnp.maximum(q, 1e-9))), 0)
    return jnp.where(end >= pieces, jnp.sum(terms), jnp.inf)

  return _best(seen, divergence, bits)


def search_scale(
  x: Array,
  *,
  axis: int | tuple[int, ...] | None,
  bits: int = 8,
  group: int | None = None,
  steps: int = 40,
  least: float = 0.5,
) -> Array:
  r"""The scales of a weight that cost the least squared error: some clipping pays at few bits.

  $s = c \cdot \max |x| / l$ with the best of `steps` factors c in [least, 1], for each scale.

  Args:
    x: float `[...]`.
    axis: as in `quantize`.
    bits: as in `quantize`.
    group: as in `quantize`.
    steps: how many factors are tried.
    least: the smallest of them, in (0, 1].

  Returns:
    float32, for `quantize(x, axis=axis, scale=..., bits=bits, group=group)`.

  Raises:
    ValueError: as `quantize`, or if `steps` < 1 or `least` lies outside (0, 1].

  Example:
    >>> import jax.numpy as jnp
    >>> x = jnp.concatenate([jnp.linspace(-1, 1, 64), jnp.array([1.6])])
    >>> round(float(search_scale(x, axis=0, bits=4)[0]) * 7, 2)
    1.39
  """
  if steps < 1 or not 0 < least <= 1:
    raise ValueError(f"need steps >= 1 and least in (0, 1], got {steps} and {least}")
  widest = quantize(x, axis=axis, bits=bits, group=group).scale

  def error(factor: Array) -> Array:
    tried = quantize(x, axis=axis, scale=widest * factor, bits=bits, group=group)
    square = (dequantize(tried) - x) ** 2
    # Of each scale: sums over what shares it.
    for place, size in enumerate(widest.shape):
      parts = (*square.shape[:place], size, -1, *square.shape[place + 1 :])
      square = jnp.sum(square.reshape(parts), axis=place + 1)
    return square

  factors = jnp.linspace(least, 1.0, steps) if steps > 1 else jnp.ones(1)
  errors = jax.lax.map(error, factors)
  return widest * factors[jnp.argmin(errors, axis=0)]


def _coarser(seen: Histogram, exponent: Array) -> Array:
  """Its counts with the limit of a larger exponent."""
  index = jnp.arange(BINS) >> jnp.minimum(exponent - seen.exponent, 31)
  return jnp.zeros(BINS, jnp.int32).at[index].add(seen.counts)


def _best(seen: Histogram, cost, bits: int) -> Array:
  """The scale of the range with the least cost, among whole bins up to the limit."""
  ends = jnp.arange(1, BINS + 1)
  costs = jax.lax.map(cost, ends)
  costs = jnp.where(ends * seen.width() <= seen.limit(), costs, jnp.inf)
  end = ends[jnp.argmin(costs)] * seen.width()
  # Where all is infinite (few bins in use) the whole range is as good as any.
  end = jnp.where(jnp.isinf(jnp.min(costs)), seen.limit(), end)
  return jnp.maximum(end / levels_of(bits), TINY)
