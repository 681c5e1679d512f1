"""`QTensor`: int8 values and their float32 scales, standing where a float weight stood."""

import dataclasses
import math

import jax
import jax.numpy as jnp

from kdjax.quant.integer import LEVELS, integer_dot, symmetric_scale, to_int8
from kdjax.types import Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class QTensor:
  """A weight as int8: `w = values * scale`.

  A pytree of two arrays. To any JAX function it looks like the float32 array it stands for, because
  `__jax_array__` dequantises: stock Linen layers take it unchanged. `kdjax.quant.dot` and `rdot`
  multiply it in integers instead.

  Attributes:
    values: int8 `[...]`, in [-127, 127].
    scale: float32 of the same rank, each axis of size 1 or as `values`'. An axis of size 1 shares
      one scale: `[1, out]` for a kernel `[in, out]`, `[V, 1]` for a table `[V, d]`.

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
  def nbytes(self) -> int:
    """Bytes that values and scales take."""
    return self.values.size * self.values.dtype.itemsize + self.scale.size * 4

  def __jax_array__(self) -> Array:
    return dequantize(self)

  def __getitem__(self, index) -> Array:
    """`dequantize(self)[index]`, float32, dequantising only what is asked for."""
    return self.values[index].astype(jnp.float32) * jnp.broadcast_to(self.scale, self.shape)[index]

  def take(self, ids: Array) -> Array:
    """Rows at `ids` int `[...]` of a table `[V, d]`: float32 `[..., d]`."""
    rows = jnp.zeros_like(ids) if self.scale.shape[0] == 1 else ids
    return self.values[ids].astype(jnp.float32) * self.scale[rows]

  def rdot(self, query: Array) -> Array:
    """`query @ table.T`: float `[..., d]` with a table `[V, d]` to float32 `[..., V]`.

    Computed as `integer_dot`: needs a scale of size 1 along the last axis.
    """
    return integer_dot(query, self.values, self.scale, axis=1)


def is_qtensor(x) -> bool:
  """Whether `x` is a QTensor: the `is_leaf` of trees that hold them."""
  return isinstance(x, QTensor)


def quantize(
  x: Array, *, axis: int | tuple[int, ...] | None, scale: Array | None = None
) -> QTensor:
  r"""Symmetric int8: $v = \mathrm{clip}(\mathrm{round}(x / s), -127, 127)$, $s = \max |x| / 127$.

  Args:
    x: float `[...]`.
    axis: the axes over which one scale is shared, those that a product will contract: 0 for a
      kernel `[in, out]` (a scale per output channel), -1 for a table `[V, d]` (a scale per row),
      None for all axes (one scale per tensor), `()` for none. The maximum is taken over them.
    scale: float32 broadcastable against `x`, to use instead of the maximum: a fixed range, values
      outside `[-127 s, 127 s]` are clipped. It must be positive.

  Returns:
    QTensor; `scale` has size 1 along `axis` (a given one is reshaped to the rank of `x`).
    `|x - dequantize(q)| <= s / 2` where nothing was clipped. Quantising what was dequantised gives
    the same values. All-zero channels give 0 back. int8 has no NaN: a channel that holds a NaN (or,
    without `scale`, an infinity) gets a NaN scale, so that all of it is visibly NaN.

  Raises:
    ValueError: if a given scale is not of size 1 along `axis`, or does not broadcast.

  Example:
    >>> import jax.numpy as jnp
    >>> quantize(jnp.array([[3.0, -1.5], [0.0, 0.0]]), axis=-1).values.tolist()
    [[127, -64], [0, 0]]

  Reference:
    B. Jacob et al., Quantization and Training of Neural Networks for Efficient
    Integer-Arithmetic-Only Inference, CVPR 2018, arXiv:1712.05877; here without zero points and
    over the restricted range [-127, 127], as their section 2.4 does for weights.
  """
  x = jnp.asarray(x)
  axes = _axes(x.ndim, axis)
  if scale is None:
    scale = symmetric_scale(x, axis=axes)
  else:
    scale = _fit(jnp.asarray(scale, jnp.float32), x.shape, axes)
    channel_nan = jnp.any(jnp.isnan(x), axis=_shared(scale, x), keepdims=True)
    scale = jnp.where(channel_nan, jnp.nan, scale)
  return QTensor(to_int8(x, scale), scale)


def dequantize(q: QTensor) -> Array:
  """`values * scale`, float32 of `q.shape`."""
  return q.values.astype(jnp.float32) * q.scale


def fake_quant(
  x: Array, *, axis: int | tuple[int, ...] | None, scale: Array | None = None
) -> Array:
  r"""`dequantize(quantize(x))` with a straight-through gradient, for training.

  $\hat x = s\,\mathrm{clip}(\mathrm{round}(x / s), -127, 127)$; the gradient to `x` is that of the
  identity, and 0 where a fixed range clips ($|x| > 127 s$). None goes to `scale`.

  Args:
    x: float `[...]`.
    axis: as in `quantize`.
    scale: as in `quantize`; None for the maximum of `x` itself, where nothing clips.

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
  q = quantize(x, axis=axis, scale=scale)
  passed = x
  if scale is not None:
    limit = LEVELS * q.scale
    passed = jnp.where(jnp.abs(x) <= limit, x, jax.lax.stop_gradient(x))
  rounded = jax.lax.stop_gradient(dequantize(q).astype(x.dtype))
  # `rounded + (x - x)` would turn an infinity into NaN and round twice: pass the gradient only.
  return _replace(passed, rounded)


@jax.custom_jvp
def _replace(x: Array, value: Array) -> Array:
  del x
  return value


@_replace.defjvp
def _replace_jvp(primals, tangents):
  return primals[1], tangents[0]


def _axes(ndim: int, axis: int | tuple[int, ...] | None) -> tuple[int, ...]:
  if axis is None:
    return tuple(range(ndim))
  axes = (axis,) if isinstance(axis, int) else tuple(axis)
  if any(not -ndim <= a < ndim for a in axes):
    raise ValueError(f"axis {axis} is out of range for rank {ndim}")
  return tuple(sorted({a % ndim for a in axes}))


def _fit(scale: Array, shape: tuple[int, ...], axes: tuple[int, ...]) -> Array:
  """A given scale at the rank of `x`, checked."""
  fitted = (1,) * (len(shape) - scale.ndim) + scale.shape
  wanted = tuple(1 if a in axes else n for a, n in enumerate(shape))
  if len(fitted) != len(shape) or any(n not in (1, w) for n, w in zip(fitted, wanted, strict=True)):
    raise ValueError(
      f"scale {scale.shape} does not fit x {shape} with one scale shared over axes {axes}: "
      f"it must broadcast to {wanted}"
    )
  return scale.reshape(fitted)


def _shared(scale: Array, x: Array) -> tuple[int, ...]:
  return tuple(a for a in range(x.ndim) if scale.shape[a] == 1)
