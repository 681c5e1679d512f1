"""`QTensor`: int8 or int4 values and their float32 scales, standing where a float weight stood."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from kdjax.quant.integer import (
  TINY,
  integer_dot,
  levels_of,
  pass_gradient,
  spread,
  symmetric_scale,
)
from kdjax.types import Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class QTensor:
  """A weight as int8 or int4: `w = (values - zero) * scale * input_factor`.

  A pytree of arrays. To any JAX function it looks like the float32 array it stands
  for, because `__jax_array__` dequantises: stock Linen layers take it unchanged. `kdjax.quant.dot`
  and `rdot` multiply it in integers instead.

  Attributes:
    values: int8 or int4 `[...]`; a symmetric weight never uses the least number, -128 or -8.
    scale: float32 of the same rank. An axis of size 1 shares one scale: `[1, out]` for a kernel
      `[in, out]`, `[V, 1]` for a table `[V, d]`; an axis of size G has one for each of G groups of
      consecutive entries.
    zero: int8 of the shape of `scale`, the value that stands for 0; None for a symmetric weight.
    input_factor: float32, one for each input of a product (`[in, 1]` for a kernel, `[1, d]` for a
      table), by which activations are multiplied before they are quantised; None for ones. See
      `smooth_quant` and `awq`.
    input_scale: float32 `[]`, the static scale of activations; None for a scale a row, found as
      they come. See `with_input_scales`.
    shadow: float32 of the shape of `values`, while training: the gradient of
      `(values - zero) * scale` goes there. See `straight_through`.

  Example:
    >>> import jax.numpy as jnp
    >>> q = quantize(jnp.array([[1.27, -0.5], [0.0, 0.25]]), axis=0)
    >>> q.values.tolist(), q.scale.shape, q.shape, q.dtype.name
    ([[127, -127], [0, 64]], (1, 2), (2, 2), 'float32')
    >>> float(jnp.asarray(q)[0, 1])
    -0.5
  """

  values: Array
  scale: Array
  zero: Array | None = None
  input_factor: Array | None = None
  input_scale: Array | None = None
  shadow: Array | None = None

  @property
  def shape(self) -> tuple[int, ...]:
    """Shape of the weight it stands for."""
    return self.values.shape

  @property
  def ndim(self) -> int:
    """Rank of the weight it stands for."""
    return self.values.ndim

  @property
  def size(self) -> int:
    """How many weights it stands for."""
    return math.prod(self.values.shape)

  @property
  def dtype(self) -> jnp.dtype:
    """float32: that of the weight it stands for."""
    return jnp.dtype(jnp.float32)

  @property
  def bits(self) -> int:
    """Of a value: 8 or 4."""
    return jnp.iinfo(self.values.dtype).bits

  @property
  def nbytes(self) -> int:
    """Bytes of all but the shadow as they are stored: two int4 to a byte.

    In memory a backend may give an int4 a byte of its own, as CPUs do.
    """
    parts = (self.scale, self.zero, self.input_factor, self.input_scale)
    rest = sum(part.size * part.dtype.itemsize for part in parts if part is not None)
    return -(-self.values.size * self.bits // 8) + rest

  def replace(self, **changes: Any) -> "QTensor":
    """A copy with other parts."""
    return dataclasses.replace(self, **changes)

  def __jax_array__(self) -> Array:
    return dequantize(self)

  def __getitem__(self, index) -> Array:
    """`dequantize(self)[index]`, float32, dequantising only what is asked for."""

    def part(per: Array) -> Array:
      return jnp.broadcast_to(spread(per, self.shape), self.shape)[index].astype(jnp.float32)

    return self._weights(part)

  def take(self, ids: Array) -> Array:
    """Rows at `ids` int `[...]` of a table `[V, d]`: float32 `[..., d]`."""

    def rows(per: Array) -> Array:
      found = per[ids // (self.shape[0] // per.shape[0])]
      return spread(found, (*found.shape[:-1], self.shape[1])).astype(jnp.float32)

    return self._weights(rows)

  def rdot(self, query: Array) -> Array:
    """`query @ table.T`: float `[..., d]` with a table `[V, d]` to float32 `[..., V]`.

    Computed as `integer_dot` over the last axis.
    """
    return self.contract(query, axis=1)

  def contract(self, x: Array, *, axis: int) -> Array:
    """`integer_dot` of `x` float `[..., K]` with axis 0 or 1: float32 `[..., N]`."""
    return integer_dot(
      x,
      self.values,
      self.scale,
      self.zero,
      axis=axis,
      input_factor=self.input_factor,
      input_scale=self.input_scale,
      shadow=self.shadow,
    )

  def _weights(self, part: Callable[[Array], Array]) -> Array:
    """Some of the weights; `part` takes what belongs to them from any of the arrays."""
    weights = part(self.values)
    if self.zero is not None:
      weights = weights - part(self.zero)
    weights = weights * part(self.scale)
    if self.shadow is not None:
      weights = pass_gradient(part(self.shadow), weights)
    return weights if self.input_factor is None else weights * part(self.input_factor)


def is_qtensor(x) -> bool:
  """Whether `x` is a QTensor: the `is_leaf` of trees that hold them."""
  return isinstance(x, QTensor)


def quantize(
  x: Array,
  *,
  axis: int | tuple[int, ...] | None,
  scale: Array | None = None,
  zero: Array | None = None,
  bits: int = 8,
  group: int | None = None,
  affine: bool = False,
) -> QTensor:
  r"""Integers for floats, symmetric or affine, with a scale for each tensor, channel or group.

  Symmetric: $v = \mathrm{clip}(\mathrm{round}(x / s), -l, l)$, $s = \max |x| / l$,
  $l = 2^{b - 1} - 1$. Affine: $v = \mathrm{clip}(\mathrm{round}(x / s) + z, -l - 1, l)$,
  $s = (x_{max} - x_{min}) / (2^b - 1)$, $z = -l - 1 - \mathrm{round}(x_{min} / s)$, where the range
  always holds 0, so that 0 is exact.

  Args:
    x: float `[...]`.
    axis: the axes over which one scale is shared, those that a product will contract: 0 for a
      kernel `[in, out]` (a scale per output channel), -1 for a table `[V, d]` (a scale per row),
      None for all axes (one scale per tensor), `()` for none.
    scale: float32 broadcastable against `x`, to use instead of the range of `x`: values outside of
      it are clipped. It must be positive.
    zero: int, broadcastable likewise, the zero points of a given scale; None for a symmetric one.
    bits: 8 or 4.
    group: how many consecutive entries along the (single) axis share a scale; None for all.
    affine: whether ranges that are not symmetric get a zero point.

  Returns:
    QTensor; `scale` has size 1 (or the number of groups) along `axis`.
    `|x - dequantize(q)| <= s / 2` where nothing was clipped (for an affine range `s`). Quantising
    what was dequantised gives the same values. All-zero channels give 0 back. Integers have no
    NaN: a channel that holds a NaN (or, without `scale`, an infinity) gets a NaN scale, so that all
    of it is visibly NaN.

  Raises:
    ValueError: if `bits` is neither 8 nor 4; if `group` does not divide the one axis; if a given
      scale does not fit, or comes with `affine`.

  Example:
    >>> import jax.numpy as jnp
    >>> quantize(jnp.array([[3.0, -1.5], [0.0, 0.0]]), axis=-1).values.tolist()
    [[127, -64], [0, 0]]
    >>> q = quantize(jnp.array([0.0, 1.5, 3.0, 30.0]), axis=0, bits=4, group=2, affine=True)
    >>> q.values.tolist(), q.zero.tolist(), q.nbytes
    ([-8, 7, -6, 7], [-8, -8], 12)

  Reference:
    B. Jacob et al., Quantization and Training of Neural Networks for Efficient
    Integer-Arithmetic-Only Inference, CVPR 2018, arXiv:1712.05877 (symmetric: over the restricted
    range, as their section 2.4 does for weights).
  """
  x = jnp.asarray(x)
  axes = _axes(x.ndim, axis)
  levels = levels_of(bits)
  shape = _group_shape(x.shape, axes, group)
  if scale is None:
    # Groups become an axis of their own, for the time of the range.
    parts = x if group is None else x.reshape(_split_shape(x.shape, axes[0], group))
    inner = axes if group is None else (axes[0] + 1,)
    if affine:
      scale, zero = _affine_range(parts, inner, levels)
      zero = zero.reshape(shape)
    else:
      scale = symmetric_scale(parts, axis=inner, levels=levels)
    scale = scale.reshape(shape)
  else:
    if affine:
      raise ValueError("a given scale is affine by its `zero`; leave `affine` out")
    scale = _fit(jnp.asarray(scale, jnp.float32), x.shape, shape)
    if zero is not None:
      zero = _fit(jnp.asarray(zero), x.shape, shape).astype(jnp.int8)
      zero = jnp.broadcast_to(zero, scale.shape)
    hidden = jnp.isnan(x)
    if scale.shape != x.shape:
      hidden = _any_of_group(hidden, scale.shape)
    scale = jnp.where(hidden, jnp.nan, scale)
  return QTensor(_to_integers(x, scale, zero, levels), scale, zero)


def dequantize(q: QTensor) -> Array:
  """`(values - zero) * scale * input_factor`, float32 of `q.shape`."""
  return q._weights(lambda per: spread(per, q.shape).astype(jnp.float32))


def fake_quant(
  x: Array,
  *,
  axis: int | tuple[int, ...] | None,
  scale: Array | None = None,
  zero: Array | None = None,
  bits: int = 8,
  group: int | None = None,
  affine: bool = False,
) -> Array:
  r"""`dequantize(quantize(x))` with a straight-through gradient, for training.

  The gradient to `x` is that of the identity, and 0 where a fixed range clips (symmetric int8:
  $|x| > 127 s$). None goes to `scale` and `zero`.

  Args:
    x: float `[...]`.
    axis: as in `quantize`.
    scale: as in `quantize`; None for the range of `x` itself, where nothing clips.
    zero: as in `quantize`.
    bits: as in `quantize`.
    group: as in `quantize`.
    affine: as in `quantize`.

  Returns:
    Same shape and dtype as `x`.

  Raises:
    ValueError: as `quantize`.

  Example:
    >>> import jax, jax.numpy as jnp
    >>> x = jnp.array([0.4, 1.6, 200.0])
    >>> fake_quant(x, axis=None, scale=jnp.float32(1.0)).tolist()
    [0.0, 2.0, 127.0]
    >>> jax.grad(lambda x: fake_quant(x, axis=None, scale=jnp.float32(1.0)).sum())(x).tolist()
    [1.0, 1.0, 0.0]

  Reference:
    Y. Bengio, N. Leonard, A. Courville, Estimating or Propagating Gradients Through Stochastic
    Neurons, 2013, arXiv:1308.3432; Jacob et al. 2018, section 3.
  """
  q = quantize(x, axis=axis, scale=scale, zero=zero, bits=bits, group=group, affine=affine)
  passed = x
  if scale is not None:
    levels = levels_of(bits)
    middle = jnp.float32(0) if q.zero is None else spread(q.zero, x.shape).astype(jnp.float32)
    low, high = -levels - (q.zero is not None) - middle, levels - middle
    steps = spread(q.scale, x.shape)
    inside = (x >= low * steps) & (x <= high * steps)
    passed = jnp.where(inside, x, jax.lax.stop_gradient(x))
  rounded = jax.lax.stop_gradient(dequantize(q).astype(x.dtype))
  return pass_gradient(passed, rounded)


def _axes(ndim: int, axis: int | tuple[int, ...] | None) -> tuple[int, ...]:
  if axis is None:
    return tuple(range(ndim))
  axes = (axis,) if isinstance(axis, int) else tuple(axis)
  if any(not -ndim <= a < ndim for a in axes):
    raise ValueError(f"axis {axis} is out of range for rank {ndim}")
  return tuple(sorted({a % ndim for a in axes}))


def _group_shape(
  shape: tuple[int, ...], axes: tuple[int, ...], group: int | None
) -> tuple[int, ...]:
  """The shape of scales."""
  if group is None:
    return tuple(1 if a in axes else n for a, n in enumerate(shape))
  if len(axes) != 1 or group < 1 or shape[axes[0]] % group:
    raise ValueError(f"group={group} must divide the one axis that shares scales, got axes {axes} "
                     f"of {shape}")  # fmt: skip
  return tuple(n // group if a in axes else n for a, n in enumerate(shape))


def _split_shape(shape: tuple[int, ...], axis: int, group: int) -> tuple[int, ...]:
  return (*shape[:axis], shape[axis] // group, group, *shape[axis + 1 :])


def _affine_range(x: Array, axes: tuple[int, ...], levels: int) -> tuple[Array, Array]:
  """Scale and zero point of the least and the greatest entry."""
  x = x.astype(jnp.float32)
  low = jnp.min(x, axis=axes, keepdims=True, initial=0.0)
  high = jnp.max(x, axis=axes, keepdims=True, initial=0.0)
  # A whole array behind a barrier, or XLA multiplies by the reciprocal: off in the last place.
  steps = jax.lax.optimization_barrier(jnp.full(low.shape, 2.0 * levels + 1))
  scale = jnp.maximum((high - low) / steps, TINY)
  zero = jnp.clip(-levels - 1 - jnp.round(low / scale), -levels - 1, levels)
  return scale, jnp.where(jnp.isnan(zero), 0.0, zero).astype(jnp.int8)


def _to_integers(x: Array, scale: Array, zero: Array | None, levels: int) -> Array:
  """Rounded to even and clipped; NaN becomes 0 (its scale must tell)."""
  x, steps = x.astype(jnp.float32), spread(scale, x.shape)
  if zero is None:
    values = jnp.clip(jnp.round(x / steps), -levels, levels)
  else:
    values = jnp.round(x * (1 / steps)) + spread(zero, x.shape).astype(jnp.float32)
    values = jnp.clip(values, -levels - 1, levels)
  return jnp.where(jnp.isnan(values), 0.0, values).astype(jnp.int8 if levels > 7 else jnp.int4)


def _fit(scale: Array, shape: tuple[int, ...], wanted: tuple[int, ...]) -> Array:
  """A given scale at the rank of `x`, checked."""
  fitted = (1,) * (len(shape) - scale.ndim) + scale.shape
  if len(fitted) != len(shape) or any(n not in (1, w) for n, w in zip(fitted, wanted, strict=True)):
    raise ValueError(
      f"scale {scale.shape} does not fit x {shape} with scales {wanted}: it must broadcast to them"
    )
  return scale.reshape(fitted)


def _any_of_group(hidden: Array, shape: tuple[int, ...]) -> Array:
  """Whether any entry is, for each scale."""
  for axis, (has, needs) in enumerate(zip(hidden.shape, shape, strict=True)):
    if has != needs:
      hidden = jnp.any(
        hidden.reshape(_split_shape(hidden.shape, axis, has // needs)), axis=axis + 1
      )
  return hidden
