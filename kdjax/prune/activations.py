"""Pruning that looks at what goes into a weight: Wanda, and SparseGPT with its reconstruction."""

import functools

import jax
import jax.numpy as jnp

from kdjax.prune.distributions import round_count
from kdjax.prune.patterns import unstructured
from kdjax.reconstruct import on_matrix, reconstruct
from kdjax.traced import Moments, Observed
from kdjax.tree import is_matrix, map_with_path
from kdjax.types import Array, Params, Select


def wanda(params: Params, observed: Params, *, select: Select = is_matrix) -> Params:
  r"""The score of a weight is its size times that of its input: $|w_{ij}| \lVert X_i \rVert_2$.

  As published, weights are compared within one output: use the pattern `each_output`.

  Args:
    params: any pytree of float arrays.
    observed: from `kdjax.traced.observe_inputs` with `moments`, of one batch or the sum of several.
    select: which leaves are to be pruned.

  Returns:
    float32 scores of the same structure, 0 where not selected.

  Raises:
    ValueError: if a selected leaf has no inputs: a table that is looked up, a convolution.

  Example:
    >>> import jax.numpy as jnp
    >>> from kdjax.traced import observe_inputs
    >>> params = {"kernel": jnp.array([[1.0], [1.0]])}
    >>> apply_fn = lambda params, x: x @ params["kernel"]
    >>> wanda(params, observe_inputs(apply_fn, params, jnp.array([[3.0, 4.0]])))["kernel"].tolist()
    [[3.0], [4.0]]

  Reference:
    M. Sun et al., A Simple and Effective Pruning Approach for Large Language Models, ICLR 2024,
    arXiv:2306.11695 (norms here are divided by the root of the number of rows).
  """

  def score(path, weights, seen):
    if not select(path, weights):
      return jnp.zeros(weights.shape, jnp.float32)
    if seen is None:
      raise ValueError(f"{'/'.join(path)} is no factor of an observed product; leave it unselected")
    norms = seen.value.norms()
    return on_matrix(lambda w: jnp.abs(w.astype(jnp.float32)) * norms[:, None], weights, seen.axes)

  return map_with_path(score, params, observed)


def sparse_gpt(
  params: Params,
  observed: Params,
  *,
  sparsity: float = 0.5,
  groups: tuple[int, int] | None = None,
  select: Select = is_matrix,
  block: int = 128,
  damping: float = 0.01,
) -> tuple[Params, Params]:
  r"""Removes weights one input after the other, while those of later inputs make up for it.

  Of a block of inputs go the weights with the least $w_{kj}^2 / U_{kk}^2$, U the upper Cholesky
  factor of $(X^T X + \lambda I)^{-1}$: what $\lVert X W - X \hat W \rVert^2$ becomes when the
  rest is corrected as best as can be (see `kdjax.reconstruct`).

  Args:
    params: any pytree of float arrays.
    observed: as in `wanda`.
    sparsity: fraction of every block of inputs to remove, in [0, 1].
    groups: (n, m): at most n of m consecutive inputs of every output stay, and `sparsity` says
      nothing.
    select: which leaves are pruned; the others stay as they are.
    block: inputs that are decided about together; a multiple of m.
    damping: lambda as a share of the mean of the diagonal.

  Returns:
    (params, masks): the corrected params, and masks that are False where these are exactly 0.

  Raises:
    ValueError: as `wanda`; if `sparsity` lies outside [0, 1], or the groups do not fit.

  Example:
    >>> import jax.numpy as jnp
    >>> from kdjax.traced import observe_inputs
    >>> params, x = {"kernel": jnp.array([[1.0], [2.0]])}, jnp.array([[1.0, 1.0], [1.0, 1.1]])
    >>> seen = observe_inputs(lambda params, x: x @ params["kernel"], params, x)
    >>> pruned, masks = sparse_gpt(params, seen, sparsity=0.5)
    >>> masks["kernel"][:, 0].tolist(), round(float(pruned["kernel"][1, 0]), 1)
    ([False, True], 2.9)

  Reference:
    E. Frantar, D. Alistarh, SparseGPT: Massive Language Models Can be Accurately Pruned in
    One-Shot, ICML 2023, arXiv:2301.00774.
  """
  if not 0 <= sparsity <= 1:
    raise ValueError(f"sparsity must lie in [0, 1], got {sparsity}")
  if groups is not None and (not 0 < groups[0] < groups[1] or block % groups[1]):
    raise ValueError(f"groups need 0 < n < m, and m must divide block={block}; got {groups}")
  init, round_row = _rule(float(sparsity), groups)

  def solve(path, weights, seen: Observed | None):
    if not select(path, weights):
      return weights
    name = "/".join(path)
    if seen is None:
      raise ValueError(f"{name} is no factor of an observed product; leave it unselected")
    statistic: Moments = seen.value
    if groups is not None and statistic.total.shape[0] % groups[1]:
      raise ValueError(f"{name} has {statistic.total.shape[0]} inputs, no multiple of {groups[1]}")
    solved = on_matrix(
      lambda w: reconstruct(w, statistic.total, round_row, init, block=block, damping=damping),
      weights,
      seen.axes,
    )
    return solved.astype(weights.dtype)

  pruned = map_with_path(solve, params, observed)
  masks = map_with_path(
    lambda path, w: w != 0 if select(path, w) else jnp.ones(w.shape, bool), pruned
  )
  return pruned, masks


@functools.cache  # One pair of functions a setting, so that blocks are compiled once.
def _rule(sparsity: float, groups: tuple[int, int] | None):
  def cost(weights: Array, diagonal: Array) -> Array:
    return weights**2 / diagonal[:, None] ** 2

  def init(weights: Array, diagonal: Array, rows) -> Array:
    del rows
    if groups is not None:
      return jnp.ones(weights.shape, bool)
    return unstructured(cost(weights, diagonal), round_count(sparsity, weights.size))

  def round_row(k, weights: Array, diagonal: Array, masks: Array):
    if groups is not None:
      masks = jax.lax.cond(k % groups[1] == 0, decide, lambda *args: args[-1], k, weights,
                           diagonal, masks)  # fmt: skip
    return jnp.where(masks[k], weights[k], 0.0), masks

  def decide(k, weights: Array, diagonal: Array, masks: Array) -> Array:
    n, m = groups or (1, 1)
    part = jax.lax.dynamic_slice_in_dim(cost(weights, diagonal), k, m, axis=0)
    order = jnp.argsort(part, axis=0, descending=True)
    return jax.lax.dynamic_update_slice_in_dim(masks, jnp.argsort(order, axis=0) < n, k, axis=0)

  return init, round_row
