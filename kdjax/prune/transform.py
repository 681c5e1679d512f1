"""`prune`: pruning as the last link of an optax chain."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from kdjax.prune.criteria import magnitude
from kdjax.prune.distributions import Distribution, uniform
from kdjax.prune.masks import make_masks
from kdjax.prune.patterns import Pattern, unstructured
from kdjax.prune.schedules import Schedule
from kdjax.tree import is_matrix
from kdjax.types import Array, Params, Select


class PruneState(NamedTuple):
  """State of `prune`.

  Attributes:
    count: int32 [], steps seen.
    masks: bool, shaped like params, True where a weight stays.
  """

  count: Array  # type: ignore[assignment]
  masks: Params


def prune(
  schedule: Schedule,
  *,
  criterion: Callable[[Params], Params] = magnitude,
  select: Select = is_matrix,
  pattern: Pattern = unstructured,
  distribution: Distribution = uniform,
) -> optax.GradientTransformation:
  r"""Removes weights while training: the last link of an optax chain.

  $u_i \leftarrow u_i$ where the mask is True, $-p_i$ elsewhere, so that `optax.apply_updates`
  leaves masked weights exactly 0: there is no second hook to forget. Masks are made anew at the
  schedule's steps only, from the params before the step. What was removed stays removed.

  Args:
    schedule: when, and how much: `one_shot`, `cubic`, or anything with the two methods of
      `Schedule`. Its step 0 is the first update.
    criterion: `params -> scores`; the lowest are removed.
    select: which leaves take part; the others keep an all-True mask.
    pattern: as in `make_masks`.
    distribution: as in `make_masks`.

  Returns:
    optax.GradientTransformation with state `PruneState(count, masks)`.

  Raises:
    ValueError: if `update` is called without params.

  Example:
    >>> import jax.numpy as jnp, optax
    >>> from kdjax.prune.schedules import one_shot
    >>> tx = optax.chain(optax.sgd(0.5), prune(one_shot(0.5)))
    >>> params = {"kernel": jnp.array([[1.0, 4.0], [3.0, 2.0]])}
    >>> updates, state = tx.update({"kernel": jnp.ones([2, 2])}, tx.init(params), params)
    >>> optax.apply_updates(params, updates)["kernel"].tolist()
    [[0.0, 3.5], [2.5, 0.0]]

  Reference:
    M. Zhu, S. Gupta, To prune, or not to prune, 2017, arXiv:1710.01878; they let removed weights
    come back within the schedule, here they do not.
  """

  def init(params: Params) -> PruneState:
    masks = jax.tree.map(lambda w: jnp.ones_like(w, dtype=bool), params)
    return PruneState(jnp.zeros([], jnp.int32), masks)

  def fresh(state: PruneState, params: Params) -> Params:
    scores = criterion(params)
    scores = jax.tree.map(lambda m, s: jnp.where(m, s, -jnp.inf), state.masks, scores)
    return make_masks(
      scores,
      sparsity=schedule.sparsity(state.count),
      select=select,
      pattern=pattern,
      distribution=distribution,
    )

  def update(updates, state: PruneState, params: Params | None = None):
    if params is None:
      raise ValueError("prune needs params: call tx.update(grads, state, params)")
    # `cond` runs one branch: other steps pay for no scores and no masks.
    masks = jax.lax.cond(
      schedule.is_update(state.count), fresh, lambda state, params: state.masks, state, params
    )
    # params + (-params) is exactly 0.
    updates = jax.tree.map(lambda m, u, p: jnp.where(m, u, -p), masks, updates, params)
    return updates, PruneState(optax.safe_increment(state.count), masks)

  return optax.GradientTransformation(init, update)


def find_masks(opt_state: optax.OptState) -> Params:
  """The masks of the one `prune` inside an optimizer state.

  Args:
    opt_state: state of any optax chain that holds `prune` once.

  Returns:
    bool, shaped like params.

  Raises:
    ValueError: if there is no `PruneState` in it, or more than one.

  Example:
    >>> import jax.numpy as jnp, optax
    >>> from kdjax.prune.schedules import one_shot
    >>> tx = optax.chain(optax.adam(0.1), prune(one_shot(0.5)))
    >>> find_masks(tx.init({"kernel": jnp.ones([1, 2])}))
    {'kernel': Array([[ True,  True]], dtype=bool)}
  """
  leaves = jax.tree.leaves(opt_state, is_leaf=lambda node: isinstance(node, PruneState))
  found = [leaf for leaf in leaves if isinstance(leaf, PruneState)]
  if len(found) != 1:
    raise ValueError(f"expected one PruneState in the optimizer state, found {len(found)}")
  return found[0].masks
