"""`dot(x, w)`: one product for float weights and int8 weights."""

import jax.numpy as jnp

from kdjax.quant.qtensor import QTensor
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
    float32 `[..., N]`. Gradients pass straight through the rounding, see `integer_dot`.

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
    return w.contract(x, axis=0)
  return jnp.dot(x, w, preferred_element_type=jnp.float32).astype(jnp.float32)
