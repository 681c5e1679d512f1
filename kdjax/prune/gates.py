"""The complexity-regularised objective: gates on units, what a model costs, and a budget to reach.

  L(theta) + lambda C(theta)

A gate stands on every unit of the axes that `find_axes` names. Trained with the params, gates close
where a unit costs more than it is worth; `multiplier` finds the lambda that meets a budget.
"""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kdjax.prune.shrink import axis_scores, axis_sizes, named_units
from kdjax.types import Array, Params

_LOW, _HIGH = -0.1, 1.1  # The stretch: what falls outside of [0, 1] is exactly 0 or 1.
_TEMPERATURE = 2 / 3


def init_gates(params: Params, axes: Params, *, open_at: float = 0.9) -> dict[str, Array]:
  r"""Parameters of hard-concrete gates, one a unit: $\log \alpha$.

  Args:
    params: float arrays.
    axes: of them, from `find_axes` or a model.
    open_at: the probability that a gate is not 0 at the start, in (0, 1).

  Returns:
    float32 `[units]` by axis name: train them beside the params.

  Raises:
    ValueError: if `open_at` lies outside (0, 1).

  Example:
    >>> import jax.numpy as jnp
    >>> params, axes = {"up": jnp.ones([2, 3])}, {"up": (None, "mlp")}
    >>> gates = init_gates(params, axes, open_at=0.9)
    >>> [round(float(p), 3) for p in open_probabilities(gates)["mlp"]]
    [0.9, 0.9, 0.9]

  Reference:
    C. Louizos, M. Welling, D. Kingma, Learning Sparse Neural Networks through L0 Regularization,
    ICLR 2018, arXiv:1712.01312.
  """
  if not 0 < open_at < 1:
    raise ValueError(f"open_at must lie in (0, 1), got {open_at}")
  start = np.log(open_at / (1 - open_at)) + _TEMPERATURE * np.log(-_LOW / _HIGH)
  sizes = axis_sizes(params, axes)
  return {name: jnp.full(size, start, jnp.float32) for name, size in sizes.items()}


def open_probabilities(gates: Mapping[str, Array]) -> dict[str, Array]:
  r"""Of every gate, that it is not 0: $\sigma(\log \alpha - \beta \log(-\gamma / \zeta))$."""
  shift = _TEMPERATURE * np.log(-_LOW / _HIGH)
  return {name: jax.nn.sigmoid(values - shift) for name, values in gates.items()}


def sample_gates(gates: Mapping[str, Array], *, key: Array | None = None) -> dict[str, Array]:
  r"""Gates in [0, 1]: drawn for a step of training, or as they are served.

  $z = \min(1, \max(0, \bar s (\zeta - \gamma) + \gamma))$ with $\bar s = \sigma((\log u - \log(1 -
  u) + \log \alpha) / \beta)$, u uniform; as served $\bar s = \sigma(\log \alpha)$.

  Args:
    gates: from `init_gates`.
    key: a PRNG key; None for the gates as served.

  Returns:
    float32 `[units]` by axis name.
  """

  def stretched(values: Array) -> Array:
    return jnp.clip(values * (_HIGH - _LOW) + _LOW, 0.0, 1.0)

  if key is None:
    return {name: stretched(jax.nn.sigmoid(values)) for name, values in gates.items()}
  drawn = {}
  for i, (name, values) in enumerate(sorted(gates.items())):
    noise = jax.random.logistic(jax.random.fold_in(key, i), values.shape)
    drawn[name] = stretched(jax.nn.sigmoid((noise + values) / _TEMPERATURE))
  return drawn


def apply_gates(params: Params, axes: Params, opened: Mapping[str, Array]) -> Params:
  """Params behind gates: what makes a unit is multiplied by its gate, all else masked by it.

  What makes it are the arrays that have the unit on their last axis: columns of kernels, biases,
  scales, columns of tables (all arrays, if none has). A unit whose gate is exactly 0 is 0 in every
  array, so that `take_axes` of the rest has the same outputs.

  Args:
    params: float arrays.
    axes: as in `init_gates`.
    opened: from `sample_gates`.

  Returns:
    The same structure, shapes and dtypes as `params`.

  Example:
    >>> import jax.numpy as jnp
    >>> params, axes = {"up": jnp.ones([2, 3])}, {"up": (None, "mlp")}
    >>> apply_gates(params, axes, {"mlp": jnp.array([1.0, 0.5, 0.0])})["up"][0].tolist()
    [1.0, 0.5, 0.0]
  """
  leaves, structure = jax.tree.flatten(params)
  places = named_units(params, axes)
  makers = {name for leaf, axis, name, _ in places if axis == leaves[leaf].ndim - 1}
  for leaf, axis, name, of in places:
    gate = opened[name]
    if name in makers and axis != leaves[leaf].ndim - 1:
      gate = (gate > 0).astype(jnp.float32)
    factor = jnp.append(gate, 1.0)[of]  # The last one is for entries of no unit.
    shape = [-1 if a == axis else 1 for a in range(leaves[leaf].ndim)]
    leaves[leaf] = (leaves[leaf] * factor.reshape(shape)).astype(leaves[leaf].dtype)
  return jax.tree.unflatten(structure, leaves)


def kept_units(gates: Mapping[str, Array]) -> dict[str, np.ndarray]:
  """The units whose gates as served are not 0, for `take_axes`; of each axis one at least."""
  opened = {name: np.asarray(values) for name, values in sample_gates(gates).items()}
  return {
    name: np.flatnonzero(values) if values.any() else np.array([np.argmax(gates[name])])
    for name, values in opened.items()
  }


def expected_parameters(
  params: Params, axes: Params, gates: Mapping[str, Array], *, weigh: Params | None = None
) -> Array:
  r"""How many parameters are left, in expectation over independent gates: a complexity C.

  $C = \sum_a c_a \prod_{\text{axes of } a} \sum_i \prod_{u \ni i} p_u$, p the probability that a
  gate is open.

  Args:
    params: float arrays.
    axes: as in `init_gates`.
    gates: from `init_gates`.
    weigh: $c_a$, a number an array: None for 1 (parameters); 4 or the like for bytes; how often an
      array is multiplied with a row (tokens for a kernel, 0 for a table that is looked up) for
      multiply-accumulates.

  Returns:
    float32 `[]`, differentiable in the gates.

  Example:
    >>> import jax.numpy as jnp
    >>> params = {"up": jnp.ones([2, 4]), "down": jnp.ones([4, 2])}
    >>> axes = {"up": (None, "mlp"), "down": ("mlp", None)}
    >>> round(float(expected_parameters(params, axes, init_gates(params, axes, open_at=0.5))), 3)
    8.0
  """
  open_at = open_probabilities(gates)
  leaves = jax.tree.leaves(params)
  kept: list[list[Array]] = [[jnp.ones(size) for size in leaf.shape] for leaf in leaves]
  for leaf, axis, name, of in named_units(params, axes):
    kept[leaf][axis] = kept[leaf][axis] * jnp.append(open_at[name], 1.0)[of]
  weights = [1.0] * len(leaves) if weigh is None else jax.tree.leaves(weigh)
  total = jnp.float32(0)
  for sizes, weight in zip(kept, weights, strict=True):
    size = jnp.float32(weight)
    for entries in sizes:
      size = size * jnp.sum(entries)
    total = total + size
  return total


def group_lasso(params: Params, axes: Params) -> Array:
  r"""A penalty that drives whole units to 0: $\sum_u \sqrt{n_u} \lVert w_u \rVert_2$.

  $w_u$ are all $n_u$ entries of a unit, in whichever arrays.

  Args:
    params: float arrays.
    axes: as in `init_gates`.

  Returns:
    float32 `[]`; its gradient is 0 at units that are 0.

  Example:
    >>> import jax.numpy as jnp
    >>> params, axes = {"w": jnp.array([[3.0, 0.0], [4.0, 0.0]])}, {"w": (None, "u")}
    >>> round(float(group_lasso(params, axes)), 4)
    7.0711

  Reference:
    M. Yuan, Y. Lin, Model selection and estimation in regression with grouped variables, JRSS B
    2006; W. Wen et al., Learning Structured Sparsity in Deep Neural Networks, NeurIPS 2016,
    arXiv:1608.03665.
  """
  squares = axis_scores(params, axes, jax.tree.map(lambda w: w.astype(jnp.float32) ** 2, params))
  counts = axis_scores(params, axes, jax.tree.map(lambda w: jnp.ones(w.shape), params))
  total = jnp.float32(0)
  for name, square in squares.items():
    safe = jnp.where(square > 0, square, 1.0)
    norms = jnp.where(square > 0, jnp.sqrt(safe), 0.0)
    total = total + jnp.sum(jnp.sqrt(counts[name]) * norms)
  return total


class Multiplier(NamedTuple):
  """The weight of a complexity that must stay within a budget.

  Attributes:
    log_weight: float32 `[]`, what has been learned of it.
    boost: float32 `[]`, what the present excess adds.
  """

  log_weight: Array
  boost: Array

  @property
  def weight(self) -> Array:
    """float32 `[]`: lambda, for `loss + lambda * complexity / budget`."""
    return jnp.exp(self.log_weight + self.boost)


def multiplier(weight: float = 1e-3) -> Multiplier:
  """The first lambda, > 0."""
  if not weight > 0:
    raise ValueError(f"weight must be positive, got {weight}")
  return Multiplier(jnp.log(jnp.float32(weight)), jnp.float32(0))


def toward_budget(
  state: Multiplier,
  complexity: Array,
  budget: float | Array,
  *,
  rate: float = 0.01,
  gain: float = 5.0,
) -> Multiplier:
  r"""One step of the controller of lambda.

  $w \leftarrow w + \eta e$, $\lambda = e^{w + g e}$, $e = C / B - 1$ cut at $\pm 1$. Too dear, and
  lambda grows until gates close; within the budget it falls again: at once by the excess itself,
  and for good by its sum. Gates that have closed hardly open again, so that C ends at the budget or
  somewhat below it.

  Args:
    state: before.
    complexity: C now, such as `expected_parameters`.
    budget: B > 0, in its unit.
    rate: eta > 0, about ten over the number of steps.
    gain: g >= 0; without it lambda swings.

  Returns:
    Multiplier.

  Reference:
    S. Boyd, L. Vandenberghe, Convex Optimization, 2004, chapter 5 (dual ascent); A. Stooke, J.
    Achiam, P. Abbeel, Responsive Safety in Reinforcement Learning by PID Lagrangian Methods, ICML
    2020, arXiv:2007.03964 (the proportional part); in the logarithm, so that lambda stays positive.
  """
  excess = jnp.clip(jax.lax.stop_gradient(complexity) / budget - 1, -1.0, 1.0)
  return Multiplier(state.log_weight + rate * excess, gain * excess)
