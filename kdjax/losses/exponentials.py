"""The exponential that sweeps over a catalogue spend their time on."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kdjax.types import Array

# 1 + f (c1 + f (c2 + ...)) = e^f, its relative error at most 9.2e-8 and least for this degree where
# |f| <= ln(2) / 2.
_SERIES = (0.008290272338, 0.041898159626, 0.166676381239, 0.499991478411, 0.999999706314)
_EXPONENT = np.float32(1.5 * 2**23 + 127)  # Added to an integer: its exponent's bits come out last.
# ln(2) in two parts: n times the first is exact, whether or not a compiler fuses it with the sum.
_LOG_2 = np.float32(355 / 512)
_REST = np.float32(np.log(2) - 355 / 512)
_LEAST = np.float32(-87.3)  # The exponential of less is no normal number.


def exp(x: Array) -> Array:
  r"""The exponential of what is not positive: a logit less the largest one.

  $$e^x = 2^n e^{x - n \ln 2}, \quad n = \mathrm{round}(x / \ln 2)$$

  On a CPU a polynomial takes the place of XLA's exponential, which asks for twice the instructions
  to serve numbers of any size. Not for differentiation.

  Args:
    x: float32 <= 0, -inf or NaN.

  Returns:
    float32 in [0, 1] of the same shape: relative error below 2e-7, and 0 below exp(-87.3).

  Example:
    >>> import jax.numpy as jnp
    >>> [round(float(y), 6) for y in exp(jnp.array([0.0, -1.0, -jnp.inf]))]
    [1.0, 0.367879, 0.0]
  """
  if jax.default_backend() != "cpu":
    return jnp.exp(x)
  n = jax.lax.round(x * np.float32(1 / np.log(2)), jax.lax.RoundingMethod.TO_NEAREST_EVEN)
  f = x - n * _LOG_2 - n * _REST
  series = jnp.full_like(x, _SERIES[0])
  for factor in (*_SERIES[1:], 1.0):
    series = series * f + np.float32(factor)
  bits = jax.lax.bitcast_convert_type(n + _EXPONENT, jnp.int32) << 23
  power = jax.lax.bitcast_convert_type(bits, jnp.float32)
  return jnp.where(x < _LEAST, 0.0, series * power)


def taken_once(powers: Any) -> Any:
  """A tree of exponentials that a CPU does not take again in every consumer, as XLA would.

  On an accelerator they are cheaper to take again than to write and read.
  """
  return jax.lax.optimization_barrier(powers) if jax.default_backend() == "cpu" else powers
