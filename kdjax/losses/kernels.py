"""Kernels: how alike the vectors of a set are, pair by pair."""

import jax.numpy as jnp

from kdjax.reduce import safe_divide
from kdjax.types import Array


def linear_kernel(vectors: Array) -> Array:
  r"""Dot products.

  $$k(x, y) = x \cdot y$$

  Args:
    vectors: float `[..., N, d]`.

  Returns:
    float `[..., N, N]`.

  Example:
    >>> import jax.numpy as jnp
    >>> linear_kernel(jnp.array([[1.0, 0.0], [1.0, 2.0]])).tolist()
    [[1.0, 1.0], [1.0, 5.0]]
  """
  return jnp.einsum("...nd,...md->...nm", vectors, vectors)


def polynomial_kernel(vectors: Array, *, degree: int = 2, offset: float = 0.0) -> Array:
  r"""Powers of dot products.

  $$k(x, y) = (x \cdot y + c)^p$$

  Args:
    vectors: float `[..., N, d]`.
    degree: p, a positive integer.
    offset: c >= 0.

  Returns:
    float `[..., N, N]`.

  Example:
    >>> import jax.numpy as jnp
    >>> polynomial_kernel(jnp.array([[1.0, 0.0], [1.0, 2.0]])).tolist()
    [[1.0, 1.0], [1.0, 25.0]]
  """
  return (linear_kernel(vectors) + offset) ** degree


def gaussian_kernel(vectors: Array, *, bandwidth: float | Array | None = None) -> Array:
  r"""Exponentials of squared distances.

  $$k(x, y) = e^{-\lVert x - y \rVert^2 / 2 \sigma^2}$$

  Args:
    vectors: float `[..., N, d]`.
    bandwidth: sigma**2 > 0, a number or float `[...]`; None for the mean squared distance of the
      pairs of different vectors (gradients flow through it).

  Returns:
    float `[..., N, N]`, in [0, 1].

  Example:
    >>> import jax.numpy as jnp
    >>> round(float(gaussian_kernel(jnp.array([[0.0], [2.0]]))[0, 1]), 4)
    0.6065
  """
  gram = linear_kernel(vectors)
  square = jnp.diagonal(gram, axis1=-2, axis2=-1)
  distance = jnp.maximum(square[..., :, None] + square[..., None, :] - 2 * gram, 0.0)
  if bandwidth is None:
    count = vectors.shape[-2]
    bandwidth = jnp.sum(distance, axis=(-2, -1)) / max(count * (count - 1), 1)
  bandwidth = jnp.broadcast_to(jnp.asarray(bandwidth)[..., None, None], distance.shape)
  return jnp.exp(-safe_divide(distance, 2 * bandwidth))
