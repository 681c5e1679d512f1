"""`dot(x, w)`: one product for float weights and int8 weights."""

import jax
import jax.numpy as jnp

from kdjax.quant.integer import integer_dot
from kdjax.quant.qtensor import QTensor, quantize
from kdjax.types import Array


def dot(x: Array, w: Array | QTensor) -> Array:
  r"""`x` times a kernel: in float, or in int8 when the kernel is a `QTensor`.

  Float: $y = x W$, accumulated in float32. `QTensor`: $y_{mn} = s^x_m s_n \sum_k \hat x_{mk}
  v_{kn}$, each row of `x` quantised to int8 by its own maximum, products int8 by int8 into int32,
  scales after (`integer_dot`). Where that was measured to be slower, the dequantised weight is
  multiplied in float32: `dot_plan` says where and why.

  Args:
    x: float `[..., K]`.
    w: float `[K, N]`, or `QTensor` `[K, N]` with scale `[1, N]`.

  Returns:
    float32 `[..., N]`. Gradients pass straight through the rounding.

  Raises:
    ValueError: for a `QTensor` with K > 133,144 (K 127^2 would overflow int32), a scale that varies
      along K, or shapes that do not fit.

  Example:
    >>> import jax.numpy as jnp
    >>> from kdjax.quant.qtensor import quantize
    >>> x, w = jnp.array([[1.0, -2.0], [0.5, 3.0]]), jnp.array([[0.3, 1.0], [0.7, -1.0]])
    >>> bool(jnp.allclose(dot(x, quantize(w, axis=0)), dot(x, w), atol=0.02))
    True

  Reference:
    Jacob et al., 2018, arXiv:1712.05877 (see `integer_dot`).
  """
  if isinstance(w, QTensor):
    return integer_dot(x, w.values, w.scale, w.zero, axis=0)
  return jnp.dot(x, w, preferred_element_type=jnp.float32).astype(jnp.float32)


@jax.custom_vjp
def straight_through_dot(x: Array, w: Array) -> Array:
  r"""`dot(x, quantize(w, axis=0))` forwards, the gradient of `x W` backwards.

  Quantization-aware training: the forward pass is the very integer product that is served, and the
  rounding of both sides is the identity to the gradient.

  Args:
    x: float `[..., K]`.
    w: float `[K, N]`.

  Returns:
    float32 `[..., N]`.

  Raises:
    ValueError: as `dot`.

  Example:
    >>> import jax, jax.numpy as jnp
    >>> x, w = jnp.array([[1.0, -2.0]]), jnp.array([[0.3], [0.7]])
    >>> jax.grad(lambda w: straight_through_dot(x, w).sum())(w).tolist()
    [[1.0], [-2.0]]

  Reference:
    Jacob et al., 2018, section 3; Bengio et al., 2013, arXiv:1308.3432.
  """
  return dot(x, quantize(w, axis=0))


def _forward(x: Array, w: Array):
  return straight_through_dot(x, w), (x, w)


def _backward(residuals, cotangent: Array):
  x, w = residuals
  return jax.vjp(dot, x, w)[1](cotangent)


straight_through_dot.defvjp(_forward, _backward)
