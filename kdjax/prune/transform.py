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
    scores: float32, shaped like params, the sums of a criterion on gradients; () without one.
  """

  count: Array  # type: ignore[assignment]
  masks: Params
  scores: Params = ()


def prune(
  schedule: Schedule,
  *,
  criterion: Callable[[Params], Params] = magnitude,
  gradient_criterion: Callable[[Params, Params], Params] | None = None,
  decay: float = 1.0,
  select: Select = is_matrix,
  pattern: Pattern = unstructured,
  distribution: Distribution = uniform,
) -> optax.GradientTransformationExtraArgs:
  r"""Removes weights while training: the last link of an optax chain.

  $u_i \leftarrow u_i$ where the mask is True, $-p_i$ elsewhere, so that `optax.apply_updates`
  leaves masked weights exactly 0: there is no second hook to forget. Masks are made anew at the
  schedule's steps only, from the params before the step. What was removed stays removed.

  Args:
    schedule: when, and how much: `one_shot`, `cubic`, or anything with the two methods of
      `Schedule`. Its step 0 is the first update.
    criterion: `params -> scores`; the lowest are removed.
    gradient_criterion: instead, `(params, grads) -> scores`, such as `movement`, `saliency` or
      `fisher`, summed over the steps. It needs the gradients themselves, not what the optimizer
      made of them: call `tx.update(grads, state, params, grad=grads)`, as the train step does.
    decay: what the sums are multiplied with at every step, in (0, 1].
    select: which leaves take part; the others keep an all-True mask.
    pattern: as in `make_masks`.
    distribution: as in `make_masks`.

  Returns:
    optax.GradientTransformationExtraArgs with state `PruneState(count, masks, scores)`.

  Raises:
    ValueError: if `decay` lies outside (0, 1]; if `update` is called without params, or without
      `grad` where a criterion needs it.

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

  if not 0 < decay <= 1:
    raise ValueError(f"decay must lie in (0, 1], got {decay}")

  def init(params: Params) -> PruneState:
    masks = jax.tree.map(lambda w: jnp.ones_like(w, dtype=bool), params)
    zeros = jax.tree.map(lambda w: jnp.zeros_like(w, dtype=jnp.float32), params)
    return PruneState(jnp.zeros([], jnp.int32), masks, zeros if gradient_criterion else ())

  def fresh(state: PruneState, params: Params) -> Params:
    scores = state.scores if gradient_criterion else criterion(params)
    scores = jax.tree.map(lambda m, s: jnp.where(m, s, -jnp.inf), state.masks, scores)
    return make_masks(
      scores,
      sparsity=schedule.sparsity(state.count),
      select=select,
      pattern=pattern,
      distribution=distribution,
    )

  def update(updates, state: PruneState, params: Params | None = None, *, grad=None, **extra):
    del extra
    if params is None:
      raise ValueError("prune needs params: call tx.update(grads, state, params)")
    if gradient_criterion is not None:
      if grad is None:
        raise ValueError("this criterion needs tx.update(grads, state, params, grad=grads)")
      new = gradient_criterion(params, grad)
      state = state._replace(scores=jax.tree.map(lambda s, n: decay * s + n, state.scores, new))
    # `cond` runs one branch: other steps pay for no scores and no masks.
    masks = jax.lax.cond(
      schedule.is_update(state.count), fresh, lambda state, params: state.masks, state, params
    )
    count = optax.safe_increment(state.count)
    return zeroed(updates, masks, params), PruneState(count, masks, state.scores)

  return optax.GradientTransformationExtraArgs(init, update)


def zeroed(updates: Params, masks: Params, params: Params) -> Params:
  """Updates after which params are exactly 0 where the mask is False: p + (-p) is."""
  return jax.tree.map(lambda m, u, p: jnp.where(m, u, -p), masks, updates, params)


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
