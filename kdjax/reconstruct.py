"""Rounding a weight row by row while the rest makes up for it: what SparseGPT and GPTQ share."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from kdjax.types import Array

# (row, weights of the block, their curvature, state) -> (the row rounded, state)
RoundRow = Callable[[Array, Array, Array, Any], tuple[Array, Any]]
# (weights of the block, their curvature, what belongs to its rows) -> state
Init = Callable[[Array, Array, Any], Any]


def reconstruct(
  weights: Array,
  curvature: Array,
  round_row: RoundRow,
  init: Init,
  rows: Any = (),
  *,
  block: int = 128,
  damping: float = 0.01,
) -> Array:
  r"""Rounds the rows of a weight one after the other, and corrects the rows that are left.

  With $H = X^T X + \lambda I$ and U the upper Cholesky factor of $H^{-1}$: row k becomes
  $q_k = \mathrm{round}(w_k)$, and the rows below lose $U_{kj} (w_k - q_k) / U_{kk}$, which is the
  change that keeps $\lVert X W - X Q \rVert^2$ least while rows up to k stand fixed.

  Args:
    weights: float `[K, N]`, K inputs.
    curvature: float `[K, K]`, $X^T X$ of the inputs, in any scale; inputs that never speak (0 on
      the diagonal) get a weight of 0.
    round_row: `(k, block_weights [b, N], block_diagonal [b], state) -> (row [N], state)`: what row
      k of the block becomes. The weights are those after all corrections so far, the diagonal is
      that of U.
    init: `(block_weights, block_diagonal, block_rows) -> state` at the start of a block.
    rows: arrays `[K, ...]` of which a block gets its own rows, such as scales.
    block: rows that are corrected one by one before the rest follows; no matter for the result but
      where a state is one of blocks.
    damping: lambda, as a share of the mean of the diagonal, >= 0.

  Returns:
    float32 `[K, N]`.

  Raises:
    ValueError: if the shapes do not fit.

  Reference:
    E. Frantar, D. Alistarh, SparseGPT, ICML 2023, arXiv:2301.00774; E. Frantar et al., GPTQ, ICLR
    2023, arXiv:2210.17323; B. Hassibi, D. Stork, Second Order Derivatives for Network Pruning:
    Optimal Brain Surgeon, NeurIPS 1992.
  """
  size = weights.shape[0]
  if weights.ndim != 2 or curvature.shape != (size, size):
    raise ValueError(f"weights {weights.shape} need a curvature of [{size}, {size}], got "
                     f"{curvature.shape}")  # fmt: skip
  weights, curvature = weights.astype(jnp.float32), curvature.astype(jnp.float32)
  diagonal = jnp.diagonal(curvature)
  silent = diagonal == 0
  weights = jnp.where(silent[:, None], 0.0, weights)
  added = damping * jnp.mean(diagonal) + silent
  factor = _inverse_factor(curvature + jnp.diag(jnp.broadcast_to(added, (size,))))
  rounded = []
  for start in range(0, size, block):
    stop = min(start + block, size)
    part, errors = _round_block(
      weights[start:stop],
      factor[start:stop, start:stop],
      jax.tree.map(lambda x, a=start, b=stop: x[a:b], rows),
      round_row=round_row,
      init=init,
    )
    rounded.append(part)
    tail = jnp.einsum("bk,bn->kn", factor[start:stop, stop:], errors, precision="highest")
    weights = weights.at[stop:].add(-tail)
  return jnp.concatenate(rounded)


def _inverse_factor(curvature: Array) -> Array:
  """Upper triangular U with `U^T U` the inverse."""
  size = curvature.shape[0]
  lower = jax.scipy.linalg.cho_factor(curvature, lower=True)
  inverse = jax.scipy.linalg.cho_solve(lower, jnp.eye(size))
  return jnp.linalg.cholesky((inverse + inverse.T) / 2).T


@partial(jax.jit, static_argnames=("round_row", "init"))
def _round_block(
  weights: Array, factor: Array, rows: Any, *, round_row: RoundRow, init: Init
) -> tuple[Array, Array]:
  """The rows rounded, and their errors over the diagonal."""
  diagonal = jnp.diagonal(factor)

  def step(k, carry):
    weights, errors, state = carry
    row, state = round_row(k, weights, diagonal, state)
    error = (weights[k] - row) / diagonal[k]
    # Row k of U is 0 before k: rows that were rounded stay as they are.
    weights = weights - factor[k][:, None] * error[None]
    return weights.at[k].set(row), errors.at[k].set(error), state

  start = weights, jnp.zeros_like(weights), init(weights, diagonal, rows)
  rounded, errors, _ = jax.lax.fori_loop(0, weights.shape[0], step, start)
  return rounded, errors


def on_matrix(
  fn: Callable[..., Array], weights: Array | tuple[Array, ...], axes: tuple[int, ...]
) -> Array:
  """`fn` of a weight as `[K, N]`, its contracted axes first, and back into its own shape.

  Args:
    fn: `[K, N], ... -> [K, N]`.
    weights: float `[...]`, or several of one shape.
    axes: those that are contracted.
  """
  several = weights if isinstance(weights, tuple) else (weights,)
  shape = several[0].shape
  order = (*axes, *(axis for axis in range(len(shape)) if axis not in axes))
  size = math.prod(shape[axis] for axis in axes)
  moved = [jnp.transpose(array, order) for array in several]
  out = fn(*(array.reshape(size, -1) for array in moved)).reshape(moved[0].shape)
  return jnp.transpose(out, [order.index(axis) for axis in range(len(shape))])
