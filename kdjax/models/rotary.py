"""Rotary position embeddings: positions as angles by which pairs of entries are turned."""

import math

import jax.numpy as jnp
import numpy as np

from kdjax.types import Array


def rotary_frequencies(
  head_dim: int,
  theta: float,
  *,
  factor: float = 1.0,
  bands: tuple[float, float, float] | None = None,
) -> tuple[float, ...]:
  r"""Radians a position, of every pair of entries.

  $f_i = \theta^{-2i/d} / \text{factor}$. With `bands` $(l, h, n)$ only slow pairs are divided:
  those that turn more than h times in n positions are left alone, those of fewer than l turns are
  divided, and between these the share $(t - l) / (h - l)$ of a pair of t turns is left.

  Args:
    head_dim: d, even.
    theta: base, above 1.
    factor: by how much positions are stretched, at least 1.
    bands: turns and positions, as Llama 3 stretches; None to stretch all pairs.

  Returns:
    `d / 2` floats.

  Raises:
    ValueError: if `head_dim` is odd.

  Example:
    >>> rotary_frequencies(4, 10000.0)
    (1.0, 0.01)

  Reference:
    J. Su et al., RoFormer: Enhanced Transformer with Rotary Position Embedding, 2021,
    arXiv:2104.09864. S. Chen et al., Extending Context Window of Large Language Models via
    Positional Interpolation, 2023, arXiv:2306.15595. A. Dubey et al., The Llama 3 Herd of Models,
    2024, arXiv:2407.21783 (`bands`).
  """
  if head_dim % 2:
    raise ValueError(f"rotary positions turn pairs of entries: head_dim={head_dim} is odd")
  f = theta ** -(np.arange(0, head_dim, 2) / head_dim)
  if bands is None:
    return tuple((f / factor).tolist())
  low, high, length = bands
  turns = length * f / (2 * math.pi)
  kept = np.clip((turns - low) / (high - low), 0, 1)
  return tuple((f * (kept + (1 - kept) / factor)).tolist())


def rotate(x: Array, positions: Array, frequencies: Array) -> Array:
  r"""Turns the pairs of entries (i, i + d/2) by $\text{position} \cdot f_i$.

  $y_i = x_i \cos a_i - x_{i + d/2} \sin a_i$, $y_{i + d/2} = x_{i + d/2} \cos a_i + x_i \sin a_i$:
  lengths stay, and the product of a query and a key depends on the distance of their positions.

  Args:
    x: float `[B, H, L, d]`.
    positions: int `[B, L]`.
    frequencies: float32 `[d / 2]`, see `rotary_frequencies`.

  Returns:
    Shape and dtype of `x`, computed in float32.
  """
  angle = positions.astype(jnp.float32)[:, None, :, None] * frequencies.reshape(1, 1, 1, -1)
  cos, sin = jnp.cos(angle), jnp.sin(angle)
  first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
  turned = [first * cos - second * sin, second * cos + first * sin]
  return jnp.concatenate(turned, axis=-1).astype(x.dtype)
