"""Sparse training: masks that are held, that move, or that gradients pass through."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from kdjax.prune.criteria import random
from kdjax.prune.distributions import Distribution, erdos_renyi_kernel
from kdjax.prune.masks import apply_masks, make_masks
from kdjax.prune.patterns import unstructured
from kdjax.prune.transform import PruneState, zeroed
from kdjax.tree import is_matrix, map_with_path
from kdjax.types import Array, Params, Select


def hold(masks: Params) -> optax.GradientTransformation:
  """Keeps masked weights exactly 0: the last link of an optax chain, as `prune` is.

  With `apply_masks` it trains a lottery ticket: the masks of a trained model, the weights of its
  beginning, `params = apply_masks(early_params, masks)`.

  Args:
    masks: bool, shaped like params, True where a weight stays.

  Returns:
    optax.GradientTransformation with state `PruneState`, so that `find_masks` finds them.

  Example:
    >>> import jax.numpy as jnp, optax
    >>> early, masks = {"w": jnp.array([[1.0, 2.0]])}, {"w": jnp.array([[True, False]])}
    >>> params = apply_masks(early, masks)
    >>> tx = optax.chain(optax.sgd(0.5), hold(masks))
    >>> updates, _ = tx.update({"w": jnp.ones([1, 2])}, tx.init(params), params)
    >>> optax.apply_updates(params, updates)["w"].tolist()
    [[0.5, 0.0]]

  Reference:
    J. Frankle, M. Carbin, The Lottery Ticket Hypothesis, ICLR 2019, arXiv:1803.03635; J. Frankle et
    al., Stabilizing the Lottery Ticket Hypothesis, 2019, arXiv:1903.01611 (rewinding to early
    rather than first weights).
  """

  def init(params: Params) -> PruneState:
    del params
    return PruneState(jnp.zeros([], jnp.int32), masks)

  def update(updates, state: PruneState, params: Params | None = None):
    if params is None:
      raise ValueError("hold needs params: call tx.update(grads, state, params)")
    count = optax.safe_increment(state.count)
    return zeroed(updates, state.masks, params), state._replace(count=count)

  return optax.GradientTransformation(init, update)


def regrow(
  sparsity: float,
  *,
  every: int,
  end: int,
  key: Array,
  fraction: float = 0.3,
  by_gradient: bool = True,
  criterion: Callable[[Params], Params] | None = None,
  select: Select = is_matrix,
  distribution: Distribution = erdos_renyi_kernel,
) -> optax.GradientTransformationExtraArgs:
  r"""Trains sparse from the start: the smallest weights go, as many others come.

  Masks begin at random, or by a criterion where params are trained already. At every `every`-th
  step t before `end` the fraction $f_t = \frac{f}{2} (1 + \cos(\pi t / t_{end}))$ of the weights of
  each leaf that are smallest is removed, and of all that are not there then, as many start anew
  from 0: those with the largest gradients (RigL), or any (SET).

  Args:
    sparsity: fraction of the selected weights that is 0, always; in [0, 1).
    every: steps between changes, at least 1. Between changes no mask is made.
    end: the step from which masks stay, at least 1.
    key: a PRNG key, for the first masks and for what SET grows.
    fraction: f, what changes at first, in [0, 1].
    by_gradient: RigL; False for SET. RigL needs the gradients of weights that are 0: call
      `tx.update(grads, state, params, grad=grads)`, as the train step does.
    criterion: `params -> scores` of the first masks, such as `magnitude` for params that are
      trained already; None for random ones.
    select: which leaves take part.
    distribution: how the sparsity spreads over leaves at the start; each keeps its number.

  Returns:
    optax.GradientTransformationExtraArgs, the last link of a chain, with state `PruneState`.

  Raises:
    ValueError: if an argument lies outside its range; if `update` is called without params, or
      without `grad` for RigL.

  Example:
    >>> import jax, jax.numpy as jnp, optax
    >>> from kdjax.prune import find_masks, measure_sparsity
    >>> tx = optax.chain(optax.sgd(0.1), regrow(0.5, every=2, end=8, key=jax.random.key(0)))
    >>> params = {"kernel": jnp.ones([4, 4])}
    >>> measure_sparsity(find_masks(tx.init(params)))
    0.5

  Reference:
    U. Evci et al., Rigging the Lottery: Making All Tickets Winners, ICML 2020, arXiv:1911.11134; D.
    Mocanu et al., Scalable Training of Artificial Neural Networks with Adaptive Sparse Connectivity
    inspired by Network Science, Nature Communications 2018, arXiv:1707.04780.
  """
  if not 0 <= sparsity < 1 or not 0 <= fraction <= 1:
    raise ValueError(
      f"need sparsity in [0, 1) and fraction in [0, 1], got {sparsity} and {fraction}"
    )
  if every < 1 or end < 1:
    raise ValueError(f"need every >= 1 and end >= 1, got {every} and {end}")

  def init(params: Params) -> PruneState:
    if criterion is not None:
      scores = criterion(params)
    else:
      scores = random(params, key=jax.random.fold_in(key, 0))
    masks = make_masks(scores, sparsity=sparsity, select=select, distribution=distribution)
    return PruneState(jnp.zeros([], jnp.int32), masks)

  def moved(count: Array, masks: Params, params: Params, growth: Params) -> Params:
    share = fraction / 2 * (1 + jnp.cos(jnp.pi * count / end))

    def move(path, mask, weights, wanted):
      if not select(path, weights):
        return mask
      active = jnp.sum(mask, dtype=jnp.int32)
      stays = active - jnp.round(share * active).astype(jnp.int32)
      size = jnp.where(mask, jnp.abs(weights.astype(jnp.float32)), -jnp.inf)
      kept = unstructured(size, weights.size - stays)
      return unstructured(jnp.where(kept, jnp.inf, wanted), weights.size - active)

    return map_with_path(move, masks, params, growth)

  def update(updates, state: PruneState, params: Params | None = None, *, grad=None, **extra):
    del extra
    if params is None or (by_gradient and grad is None):
      raise ValueError("regrow needs tx.update(grads, state, params, grad=grads)")
    now = (state.count > 0) & (state.count % every == 0) & (state.count < end)

    def fresh(state: PruneState) -> Params:
      if by_gradient:
        growth = jax.tree.map(lambda g: jnp.abs(g.astype(jnp.float32)), grad)
      else:
        growth = random(params, key=jax.random.fold_in(key, state.count))
      return moved(state.count, state.masks, params, growth)

    masks = jax.lax.cond(now, fresh, lambda state: state.masks, state)
    # What was not there before this step starts from 0: it takes no step yet.
    both = jax.tree.map(jnp.logical_and, state.masks, masks)
    count = optax.safe_increment(state.count)
    return zeroed(updates, both, params), state._replace(count=count, masks=masks)

  return optax.GradientTransformationExtraArgs(init, update)


@jax.custom_jvp
def _masked(params: Params, masks: Params) -> Params:
  return apply_masks(params, masks)


@_masked.defjvp
def _masked_jvp(primals, tangents):
  return _masked(*primals), tangents[0]


def straight_through_masks(params: Params, masks: Params | Callable[[Params], Params]) -> Params:
  """Masked params forwards, and to the gradient as if nothing were masked.

  Weights that are masked keep learning, and can come back once masks are made anew.

  Args:
    params: any pytree of float arrays.
    masks: bool of its structure and shapes, or a function that makes them of the params, such as
      `lambda params: make_masks(magnitude(params), sparsity=0.5)`.

  Returns:
    The same structure, shapes and dtypes as `params`.

  Example:
    >>> import jax, jax.numpy as jnp
    >>> masks = {"w": jnp.array([True, False])}
    >>> loss = lambda params: jnp.sum(straight_through_masks(params, masks)["w"] ** 2)
    >>> params = {"w": jnp.array([2.0, 3.0])}
    >>> float(loss(params)), jax.grad(loss)(params)["w"].tolist()
    (4.0, [4.0, 0.0])

  Reference:
    Y. Bengio, N. Leonard, A. Courville, Estimating or Propagating Gradients Through Stochastic
    Neurons, 2013, arXiv:1308.3432; A. Zhou et al., Learning N:M Fine-grained Structured Sparse
    Neural Networks From Scratch, ICLR 2021, arXiv:2102.04010 (without their decay).
  """
  made = masks(jax.lax.stop_gradient(params)) if callable(masks) else masks
  return _masked(params, made)
