"""The integer product itself: when to use it, how it is scaled, what its gradient is."""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kdjax.types import Array

LEVELS = 127  # Symmetric int8: -128 is never used, so that -x is always representable.
# |sum of K products| <= K 127^2, which must not exceed 2^31 - 1: K <= 133,144.
MAX_CONTRACTION = (2**31 - 1) // LEVELS**2
# With zero points a factor is a difference of two int8: K 127 255 <= 2^31 - 1.
MAX_AFFINE_CONTRACTION = (2**31 - 1) // (LEVELS * 255)
TINY = float(np.finfo(np.float32).tiny)


class Limits(NamedTuple):
  """Where the float product of the dequantised weight is faster.

  Attributes:
    one_row: at one row, with fewer weights than this.
    few_rows: at 2 to `few` rows, where reading the weights takes the time, with fewer than this.
    few: what few rows are.
    contraction: at more rows, with a shorter contraction: int32 sums are scaled in a second sweep,
      for which many products each have to pay.
    padded: rows to which a single one is else padded with zeros. XLA on CPU widens both sides of a
      one-row int8 product to int32 in memory, and keeps two rows in int8.
  """

  one_row: int
  few_rows: int
  few: int
  contraction: int
  padded: int


# By backend, measured by benchmarks/int8_dot.py on two CPUs, so that integers are slower than
# floats on neither: benchmarks/results/int8_dot.json (AVX-512) and int8_dot_xeon_amx.json (AMX,
# where short contractions would gain too).
LIMITS = {"cpu": Limits(1_000_000, 131_072, 32, 96, 2)}


class DotPlan(NamedTuple):
  """How a product with an int8 weight is computed.

  Attributes:
    integer: whether it is int8 by int8 into int32; else the weight is dequantised and multiplied
      in float32, which quantises no activation.
    rows: rows of the integer product, zero padding included.
    reason: why, in words.
  """

  integer: bool
  rows: int
  reason: str


def dot_plan(
  shape: tuple[int, int, int],
  *,
  grouped: bool = False,
  affine: bool = False,
  backend: str | None = None,
) -> DotPlan:
  """How `[M, K] x [K, N]` with an int8 weight is computed on a backend, by measurement.

  Args:
    shape: (M, K, N): rows of activations, contraction, outputs.
    grouped: whether scales vary along the contraction: they cannot be applied after the sum, so
      that only the weight is integer.
    affine: whether the weight has zero points.
    backend: "cpu", "gpu" or "tpu"; None for the default backend of this process.

  Returns:
    DotPlan. A backend nobody has measured gets the integer product, and the reason says so.

  Raises:
    ValueError: if K > 133,144 (66,311 with zero points): the sum could overflow int32.

  Example:
    >>> dot_plan((256, 1024, 1024), backend="cpu").integer
    True
    >>> dot_plan((1, 64, 64), backend="cpu").reason
    'float is faster for 4096 weights (measured)'
    >>> dot_plan((1, 1024, 1024), backend="cpu").rows
    2
  """
  rows, contraction, outputs = shape
  if grouped:
    return DotPlan(False, rows, "weight only: scales vary along the contraction")
  limit = MAX_AFFINE_CONTRACTION if affine else MAX_CONTRACTION
  if contraction > limit:
    raise ValueError(
      f"contraction of {contraction} can overflow int32: {contraction} products of "
      f"127 * {255 if affine else 127} exceed 2^31 - 1; at most {limit}"
    )
  backend = backend or jax.default_backend()
  if backend not in LIMITS:
    return DotPlan(True, rows, f"integer; not measured on {backend}")
  limits = LIMITS[backend]
  size = contraction * outputs
  if rows == 1 and size >= limits.one_row:
    return DotPlan(True, limits.padded, f"integer, one row padded to {limits.padded} (measured)")
  few = rows <= limits.few
  if rows == 1 or (few and size < limits.few_rows):
    return DotPlan(False, rows, f"float is faster for {size} weights (measured)")
  if not few and contraction < limits.contraction:
    return DotPlan(False, rows, f"float is faster at a contraction of {contraction} (measured)")
  return DotPlan(True, rows, "integer (measured)")


def levels_of(bits: int) -> int:
  """The largest value of a symmetric integer: 127 or 7.

  Raises:
    ValueError: if `bits` is neither 8 nor 4.
  """
  if bits not in (4, 8):
    raise ValueError(f"bits must be 4 or 8, got {bits}")
  return 2 ** (bits - 1) - 1


def symmetric_scale(x: Array, *, axis: int | tuple[int, ...] | None, levels: int = LEVELS) -> Array:
  """`max |x| / levels` over `axis` (kept with size 1), at least the smallest normal float32.

  The floor gives all-zero channels a scale that maps them to 0 and back; NaN stays NaN.
  """
  absmax = jnp.max(jnp.abs(x.astype(jnp.float32)), axis=axis, keepdims=True, initial=0.0)
  return jnp.maximum(absmax / levels, TINY)


def spread(per: Array, shape: tuple[int, ...]) -> Array:
  """Scales repeated over their groups, until every axis has size 1 or that of `shape`."""
  for axis, (has, needs) in enumerate(zip(per.shape, shape, strict=True)):
    if has not in (1, needs):
      per = jnp.repeat(per, needs // has, axis=axis)
  return per


def integer_dot(
  x: Array,
  values: Array,
  scale: Array,
  zero: Array | None = None,
  *,
  axis: int,
  input_factor: Array | None = None,
  input_scale: Array | None = None,
  shadow: Array | None = None,
) -> Array:
  r"""`x` times an int8 matrix, its activations quantised row by row as they come.

  $y_{mn} = s^x_m s_n \sum_k \hat x_{mk} v_{kn}$ with $s^x_m = \max_k |x_{mk}| / 127$ and
  $\hat x_{mk} = \mathrm{round}(x_{mk} / s^x_m)$; the sum is int8 by int8 into int32, exact.
  `dot_plan` may choose the float product of the dequantised weight instead. With zero points $z_n$
  the sum is $\sum_k \hat x_{mk} v_{kn} - z_n \sum_k \hat x_{mk}$. With factors $r_k$ the inputs are
  $x_{mk} r_k$. A static input scale $s^x$ stands for all $s^x_m$, and what lies beyond
  $127 s^x$ is clipped.

  The gradient is straight-through: that of $\tilde x (s (v - z))$ in floats, where
  $\tilde x = s^x \hat x$ is what was multiplied and rounding counts as the identity. It goes to `x`
  (0 where a static range clips), to `scale` or in its place to `shadow`, to `input_factor` and to
  `input_scale`.

  Args:
    x: float `[..., K]`.
    values: int8 or int4 `[K, N]` (axis 0) or `[N, K]` (axis 1).
    scale: float32, one per output: `[1, N]` or `[N, 1]`, or `[1, 1]`; with groups along the
      contraction `[G, N]` or `[N, G]`.
    zero: int8 of the shape of `scale`; None for a symmetric weight.
    axis: which axis of `values` is contracted: 0 or 1.
    input_factor: float32 with K entries; None for ones.
    input_scale: float32, one number: the static scale of activations, after the factors; None to
      find one for every row.
    shadow: float32 of the shape of `values`: gets the gradient of the weight $s (v - z)$.

  Returns:
    float32 `[..., N]`. A row of `x` that holds a NaN gives a row of NaN.

  Raises:
    ValueError: if shapes do not fit, or int32 could overflow: K > 133,144, with zero points
      66,311.

  Example:
    >>> import jax.numpy as jnp
    >>> values = jnp.array([[127, -127], [0, 127]], jnp.int8)
    >>> integer_dot(jnp.array([[2.0, 1.0]]), values, jnp.full([1, 2], 1 / 127), axis=0).shape
    (1, 2)

  Reference:
    B. Jacob et al., Quantization and Training of Neural Networks for Efficient
    Integer-Arithmetic-Only Inference, CVPR 2018, arXiv:1712.05877, section 2; here symmetric
    activations, with a scale a row. Static ranges learn as in S. Esser et al., Learned Step Size
    Quantization, ICLR 2020, arXiv:1902.08153.
  """
  if values.ndim != 2 or x.ndim < 1 or x.shape[-1] != values.shape[axis]:
    raise ValueError(f"cannot contract x {x.shape} with axis {axis} of an int8 {values.shape}")
  outputs, inputs = values.shape[1 - axis], x.shape[-1]
  groups = scale.shape[axis] if scale.ndim == 2 else 0
  fits = groups == 1 or (1 < groups < inputs and inputs % groups == 0)
  if not fits or scale.shape[1 - axis] not in (1, outputs):
    raise ValueError(
      f"scale {scale.shape} does not fit an int8 {values.shape}: along the contraction axis {axis} "
      "it must have one entry, or one for each group of entries; along the other one, or all"
    )
  if input_factor is not None and input_factor.size != inputs:
    raise ValueError(f"input_factor {input_factor.shape} needs one entry for each of {inputs}")
  plan = dot_plan(
    (math.prod(x.shape[:-1]), x.shape[-1], outputs),
    grouped=groups != 1,
    affine=zero is not None,
  )
  x = x.astype(jnp.float32)
  if input_factor is not None:
    x = x * input_factor.reshape((1,) * (x.ndim - 1) + (-1,))
  if not plan.integer:
    return _float_dot(x, values, scale, zero, shadow, axis)
  return _straight_through(x, values, scale, zero, input_scale, shadow, axis, plan.rows)


@jax.custom_jvp
def pass_gradient(x: Array, value: Array) -> Array:
  """`value`, with the gradient of `x`: straight-through.

  `x + stop_gradient(value - x)` would turn an infinity into NaN and round twice.
  """
  del x
  return value


@pass_gradient.defjvp
def _pass_gradient_jvp(primals, tangents):
  return primals[1], tangents[0]


def learned_round(x: Array, scale: Array, levels: int) -> Array:
  r"""$s\,\mathrm{round}(\mathrm{clip}(x / s, -l, l))$, rounding the identity to the gradient.

  That of `x` is then 0 where the range clips, that of `scale` is $\mathrm{round}(x/s) - x/s$ inside
  and $\pm l$ outside.
  """
  ratio = x / scale
  # Not jnp.clip, which halves the gradient at the ends of the range.
  clipped = jnp.where(jnp.abs(ratio) <= levels, ratio, levels * jnp.sign(ratio))
  return pass_gradient(clipped, jnp.round(clipped)) * scale


def round_inputs(
  x: Array, input_scale: Array | None, *, axis: int | tuple[int, ...]
) -> tuple[Array, Array]:
  """Activations as int8, and their float32 scales: found over `axis`, or the static one."""
  if input_scale is None:
    scale = symmetric_scale(x, axis=axis)
    # Never beyond 127.0001 in size, so no clipping; a reciprocal a row, not a division an entry.
    return jnp.round(x * (1 / scale)).astype(jnp.int8), scale
  fixed = input_scale.reshape((1,) * x.ndim)
  # Integers have no NaN: the scale of the row tells.
  scale = jnp.where(jnp.any(jnp.isnan(x), axis=axis, keepdims=True), jnp.nan, fixed)
  return jnp.clip(jnp.round(x / fixed), -LEVELS, LEVELS).astype(jnp.int8), scale


def seen_inputs(x: Array, input_scale: Array | None, *, axis: int | tuple[int, ...]) -> Array:
  """What `round_inputs` stands for, in float, rounding the identity to the gradient."""
  if input_scale is not None:
    return learned_round(x, input_scale.reshape((1,) * x.ndim), LEVELS)
  scale = symmetric_scale(x, axis=axis)
  return pass_gradient(x, jnp.round(x * (1 / scale)) * scale)


def float_weight(values: Array, scale: Array, zero: Array | None, shadow: Array | None) -> Array:
  """`(values - zero) * scale`, whose gradient goes to `shadow` if there is one."""
  weight = values.astype(jnp.float32)
  if zero is not None:
    weight = weight - spread(zero, weight.shape).astype(jnp.float32)
  weight = weight * spread(scale, weight.shape)
  return weight if shadow is None else pass_gradient(shadow, weight)


def _contract(x: Array, values: Array, axis: int, dtype: Any) -> Array:
  dims = (((x.ndim - 1,), (axis,)), ((), ()))
  return jax.lax.dot_general(x, values, dims, preferred_element_type=dtype)


def _float_dot(
  x: Array, values: Array, scale: Array, zero: Array | None, shadow: Array | None, axis: int
) -> Array:
  # Scaling the weight costs nothing beside widening it; scaling the product is one more sweep.
  return _contract(x, float_weight(values, scale, zero, shadow), axis, jnp.float32)


@functools.partial(jax.custom_vjp, nondiff_argnums=(6, 7))
def _straight_through(
  x: Array,
  values: Array,
  scale: Array,
  zero: Array | None,
  input_scale: Array | None,
  shadow: Array | None,
  axis: int,
  rows: int,
) -> Array:
  del shadow
  flat = x.reshape(-1, x.shape[-1])
  quantized, row_scale = round_inputs(flat, input_scale, axis=-1)
  if rows > flat.shape[0]:
    quantized = jnp.pad(quantized, ((0, rows - flat.shape[0]), (0, 0)))
  total = _contract(quantized, values.astype(jnp.int8), axis, jnp.int32)
  if zero is not None:
    sums = jnp.sum(quantized, axis=-1, keepdims=True, dtype=jnp.int32)
    total = total - sums * zero.reshape(1, -1).astype(jnp.int32)
  y = total[: flat.shape[0]].astype(jnp.float32) * (row_scale * scale.reshape(1, -1))
  return y.reshape(*x.shape[:-1], y.shape[-1])


def _forward(x, values, scale, zero, input_scale, shadow, axis, rows):
  y = _straight_through(x, values, scale, zero, input_scale, shadow, axis, rows)
  return y, (x, values, scale, zero, input_scale, shadow)


def _backward(axis: int, rows: int, residuals, cotangent: Array):
  del rows
  x, values, scale, zero, input_scale, shadow = residuals

  def product(x, scale, input_scale, shadow):
    return _float_dot(seen_inputs(x, input_scale, axis=-1), values, scale, zero, shadow, axis)

  _, pull = jax.vjp(product, x, scale, input_scale, shadow)
  dx, dscale, dinput, dshadow = pull(cotangent)
  none = jax.tree.map(lambda z: np.zeros(z.shape, jax.dtypes.float0), (values, zero))
  return dx, none[0], dscale, none[1], dinput, dshadow


_straight_through.defvjp(_forward, _backward)
