"""`conv(x, w)`: one convolution for float kernels and int8 kernels."""

import functools
import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kdjax.quant.integer import DotPlan, dot_plan, float_weight, round_inputs, seen_inputs
from kdjax.quant.qtensor import QTensor, dequantize
from kdjax.types import Array


class Limits(NamedTuple):
  """Numbers of channels with which the float convolution is faster.

  Windows are laid side by side, and few channels are copied in pieces too short.

  Attributes:
    channels: with any number of windows.
    few: fewer windows than this, as of a single image, leave less to gain.
    few_channels: with so few windows.
  """

  channels: Sequence[int]
  few: int
  few_channels: Sequence[int]


# By backend, measured by benchmarks/int8_conv.py: benchmarks/results/int8_conv.json.
LIMITS = {"cpu": Limits(range(2, 24), 1024, range(2, 64))}


class Window(NamedTuple):
  """How a kernel slides: for every spatial axis its stride, padding before and after, dilation."""

  strides: tuple[int, ...]
  pads: tuple[tuple[int, int], ...]
  dilation: tuple[int, ...]
  groups: int


def conv(
  x: Array,
  w: Array | QTensor,
  *,
  strides: int | Sequence[int] = 1,
  padding: str | Sequence[tuple[int, int]] = "SAME",
  dilation: int | Sequence[int] = 1,
  groups: int = 1,
) -> Array:
  r"""A convolution (cross-correlation), channels last: in float, or in int8 for a `QTensor`.

  Float: $y_{npo} = \sum_{k c} x_{n, p + k, c} W_{kco}$, accumulated in float32. `QTensor`:
  $y_{npo} = s^x_n s_o \sum_{kc} \hat x_{n, p + k, c} v_{kco}$, every example quantised to int8 by
  its own maximum, products int8 by int8 into int32, scales after. The windows are laid side by side
  in int8, which makes it one matrix product: backends have that in int8 where they lack
  convolutions.
  Where floats are faster the dequantised kernel is convolved: `conv_plan` says where and why.

  Args:
    x: float `[N, *spatial, C]`.
    w: float `[*window, C / groups, O]`, or `QTensor` with scale `[1, ..., 1, O]`.
    strides: of every spatial axis, or one for all.
    padding: "SAME", "VALID", or a pair before and after for every spatial axis; zeros.
    dilation: between entries of a window, likewise.
    groups: of channels that are convolved apart; a `QTensor` is then dequantised.

  Returns:
    float32 `[N, *spatial', O]`. Gradients pass straight through the rounding.

  Raises:
    ValueError: if shapes do not fit, if int32 could overflow, or if an `input_factor` varies over
      anything but channels.

  Example:
    >>> import jax, jax.numpy as jnp
    >>> from kdjax.quant.qtensor import quantize
    >>> x, w = jax.random.normal(jax.random.key(0), (2, 9, 9, 32)), jnp.ones([3, 3, 32, 4]) / 9
    >>> y = conv(x, quantize(w, axis=(0, 1, 2)), strides=2)
    >>> y.shape, bool(jnp.allclose(y, conv(x, w, strides=2), atol=0.1))
    ((2, 5, 5, 4), True)

  Reference:
    B. Jacob et al., 2018, arXiv:1712.05877; K. Chellapilla, S. Puri, P. Simard, High Performance
    Convolutional Neural Networks for Document Processing, 2006 (as one product).
  """
  axes = w.ndim - 2
  if axes < 1 or x.ndim != w.ndim or x.shape[-1] != w.shape[-2] * groups:
    raise ValueError(f"cannot convolve x {x.shape} with a kernel {w.shape} in {groups} groups")
  window = _window(x.shape[1:-1], w.shape[:-2], strides, padding, dilation, groups)
  if not isinstance(w, QTensor):
    return _float_conv(x, w, window)
  windows = x.shape[0] * math.prod(_places(x.shape, w.shape, window))
  plan = conv_plan(w.shape, windows, grouped=groups > 1, affine=w.zero is not None)
  x = x.astype(jnp.float32)
  if w.scale.shape[:-1] != (1,) * (w.ndim - 1) or not plan.integer:
    return _float_conv(x, dequantize(w), window)
  if w.input_factor is not None:
    if w.input_factor.size != w.shape[-2]:
      raise ValueError(f"input_factor {w.input_factor.shape} must be one for each channel")
    x = x * w.input_factor.reshape((1,) * (x.ndim - 1) + (-1,))
  return _straight_through(x, w.values, w.scale, w.zero, w.input_scale, w.shadow, window)


def conv_plan(
  shape: tuple[int, ...],
  windows: int | None = None,
  *,
  grouped: bool = False,
  affine: bool = False,
  backend: str | None = None,
) -> DotPlan:
  """How a convolution with an int8 kernel is computed on a backend, by measurement.

  Args:
    shape: of the kernel, `[*window, C, O]`.
    windows: that it is applied to: of all examples, at all places; None for many.
    grouped: whether channels are convolved in groups.
    affine: whether the kernel has zero points.
    backend: "cpu", "gpu" or "tpu"; None for the default backend of this process.

  Returns:
    DotPlan; its rows mean nothing here.

  Raises:
    ValueError: if the sum could overflow int32, see `dot_plan`.

  Example:
    >>> conv_plan((3, 3, 16, 32), backend="cpu").reason
    'float is faster with 16 channels (measured)'
    >>> conv_plan((3, 3, 32, 32), 14 * 14, backend="cpu").reason
    'float is faster with 32 channels at 196 windows (measured)'
    >>> conv_plan((3, 3, 32, 32), backend="cpu").integer
    True
  """
  if grouped:
    return DotPlan(False, 0, "weight only: channels are convolved in groups")
  # Raises where the sum could overflow.
  dot_plan((2, math.prod(shape[:-1]), shape[-1]), affine=affine, backend=backend)
  backend = backend or jax.default_backend()
  if backend not in LIMITS:
    return DotPlan(True, 0, f"integer; not measured on {backend}")
  limits, channels = LIMITS[backend], shape[-2]
  if channels in limits.channels:
    return DotPlan(False, 0, f"float is faster with {channels} channels (measured)")
  if windows is not None and windows < limits.few and channels in limits.few_channels:
    reason = f"float is faster with {channels} channels at {windows} windows (measured)"
    return DotPlan(False, 0, reason)
  return DotPlan(True, 0, "integer (measured)")


def _window(spatial, kernel, strides, padding, dilation, groups) -> Window:
  def each(value: Any) -> tuple[int, ...]:
    return (value,) * len(kernel) if isinstance(value, int) else tuple(value)

  strides, dilation = each(strides), each(dilation)
  reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
  if isinstance(padding, str):
    pads = jax.lax.padtype_to_pads(spatial, reach, strides, padding)
  else:
    pads = padding
  return Window(strides, tuple((int(a), int(b)) for a, b in pads), dilation, groups)


def _places(x: tuple[int, ...], w: tuple[int, ...], window: Window) -> list[int]:
  """Windows along every spatial axis."""
  sides = zip(x[1:-1], w[:-2], *window[:3], strict=True)
  return [(n + a + b - (k - 1) * d - 1) // s + 1 for n, k, s, (a, b), d in sides]


def _float_conv(x: Array, w: Array, window: Window) -> Array:
  letters = "DHW"[-(x.ndim - 2) :]
  layout = (f"N{letters}C", f"{letters}IO", f"N{letters}C")
  return jax.lax.conv_general_dilated(
    x,
    w,
    window.strides,
    window.pads,
    rhs_dilation=window.dilation,
    dimension_numbers=layout,
    feature_group_count=window.groups,
    preferred_element_type=jnp.float32,
  )


def _unfold(x: Array, w: tuple[int, ...], window: Window) -> Array:
  """Windows side by side: `[N, *places, K]` in the order of the kernel's entries."""
  padded = jnp.pad(x, ((0, 0), *window.pads, (0, 0)))
  places = _places(x.shape, w, window)
  parts = []
  for offset in itertools.product(*map(range, w[:-2])):
    start = [o * d for o, d in zip(offset, window.dilation, strict=True)]
    stop = [a + (n - 1) * s + 1 for a, n, s in zip(start, places, window.strides, strict=True)]
    parts.append(
      jax.lax.slice(
        padded, (0, *start, 0), (x.shape[0], *stop, x.shape[-1]), (1, *window.strides, 1)
      )
    )
  return jnp.concatenate(parts, axis=-1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(6,))
def _straight_through(
  x: Array,
  values: Array,
  scale: Array,
  zero: Array | None,
  input_scale: Array | None,
  shadow: Array | None,
  window: Window,
) -> Array:
  del shadow
  quantized, steps = round_inputs(x, input_scale, axis=tuple(range(1, x.ndim)))
  unfolded = _unfold(quantized, values.shape, window)
  flat = values.astype(jnp.int8).reshape(-1, values.shape[-1])
  dims = (((unfolded.ndim - 1,), (0,)), ((), ()))
  total = jax.lax.dot_general(unfolded, flat, dims, preferred_element_type=jnp.int32)
  over = (1,) * (x.ndim - 1) + (-1,)
  if zero is not None:
    sums = jnp.sum(unfolded, axis=-1, keepdims=True, dtype=jnp.int32)
    total = total - sums * zero.reshape(over).astype(jnp.int32)
  return total.astype(jnp.float32) * (steps * scale.reshape(over))


def _forward(x, values, scale, zero, input_scale, shadow, window):
  y = _straight_through(x, values, scale, zero, input_scale, shadow, window)
  return y, (x, values, scale, zero, input_scale, shadow)


def _backward(window: Window, residuals, cotangent: Array):
  x, values, scale, zero, input_scale, shadow = residuals

  def product(x, scale, input_scale, shadow):
    seen = seen_inputs(x, input_scale, axis=tuple(range(1, x.ndim)))
    return _float_conv(seen, float_weight(values, scale, zero, shadow), window)

  _, pull = jax.vjp(product, x, scale, input_scale, shadow)
  dx, dscale, dinput, dshadow = pull(cotangent)
  none = jax.tree.map(lambda z: np.zeros(z.shape, jax.dtypes.float0), (values, zero))
  return dx, none[0], dscale, none[1], dinput, dshadow


_straight_through.defvjp(_forward, _backward)
