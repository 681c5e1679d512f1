"""Adam on tables of millions of rows: a step touches the rows of its batch, and no others."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from kdjax.rows import Ids, put_at, take_at
from kdjax.tree import is_matrix, leaves_with_path, map_with_path
from kdjax.types import Array, Params, Path, Select

NEGLIGIBLE = 1e-8  # Of a row's further movement, what no longer counts.
Schedule = Callable[[Array], Any]


class LazyAdamState(NamedTuple):
  """What Adam remembers of tables whose rows are each as old as their last update.

  Trees have the tables' structure. Of every table there are two numbers at the present step t: its
  `fade` $\\log A_t$ and its `reach` $G_t$ (see `lazy_adamw`); and both as they were at each row's
  last update.

  Attributes:
    step: int32 `[]`, t, how many were taken.
    b1: float32 `[]`, as `b2` and `eps` one of Adam's constants.
    b2: float32 `[]`.
    eps: float32 `[]`.
    fade: float32 `[]` a table.
    reach: float32 `[]` a table.
    mu: float32 `[V, ...]`, first moments at the rows' last updates.
    nu: float32 `[V, ...]`, second moments likewise.
    steps: int32 `[V]`, the step of the last update; 0 for none.
    fades: float32 `[V]`.
    reaches: float32 `[V]`.
  """

  step: Array
  b1: Array
  b2: Array
  eps: Array
  fade: Params
  reach: Params
  mu: Params
  nu: Params
  steps: Params
  fades: Params
  reaches: Params


def lazy_adamw(
  learning_rate: float | Schedule,
  *,
  tables: Select,
  b1: float = 0.9,
  b2: float = 0.999,
  eps: float = 1e-8,
  weight_decay: float = 0.0,
  decays: Select = is_matrix,
) -> optax.GradientTransformationExtraArgs:
  r"""`optax.adamw` whose tables are updated by rows, and move as if they were updated whole.

  A row without a gradient still moves under Adam: its moments decay, $m_{l+j} = \beta_1^j m_l$,
  $v_{l+j} = \beta_2^j v_l$, and with $\epsilon$ left out its steps are multiples of one vector,
  since $m_{l+j} / \sqrt{v_{l+j}} = \rho^j\, m_l / \sqrt{v_l}$, $\rho = \beta_1 / \sqrt{\beta_2}$.
  All of them from its last update l to the present step t are therefore one:

  $p_t = \alpha\, p_l - (\alpha\, G_l - \rho^{t-l} G_t)\, m_l / \sqrt{v_l}$ with
  $\alpha = A_t / A_l$, $A_t = \prod_{s \le t} (1 - \eta_s \lambda)$,
  $G_t = \sum_{j \ge 1} \rho^j \eta_{t+j} \frac{\sqrt{1 - \beta_2^{t+j}}}{1 - \beta_1^{t+j}}
  \frac{A_t}{A_{t+j}}$,

  with $\eta$ the learning rates, $\lambda$ the weight decay. The sum is cut off where its terms are
  below 1e-8 of a step. `catch_up` moves rows so before they are read; this transformation then
  updates them with moments that have decayed as often as steps were skipped, so that the trained
  tables are those of `optax.adamw`. Its sole deviation: while a row is skipped, $\epsilon$ keeps
  the size that it had beside $\sqrt{v}$ at the row's last update, instead of gaining on it.

  Updates and params are those of `kdjax.rows.gather_rows`: rows `[n, ...]` where a table
  `[V, ...]` stands in the params that `init` saw. Elementwise transformations, norms and masks
  thus see what they would see of the whole table, and `optax.chain` and `optax.partition` join this
  one with others. `update` takes one argument more, `ids`: which rows these are.

  Args:
    learning_rate: a number, or a schedule of the step from 0, which is asked for later steps too.
    tables: `(path, leaf) -> bool`, which leaves are updated by rows; others as by `optax.adamw`.
    b1: decay of the first moment, below `sqrt(b2)`.
    b2: decay of the second moment.
    eps: added to the square root.
    weight_decay: decoupled, times the learning rate.
    decays: which leaves it acts on.

  Returns:
    An optax transformation; `update(updates, state, params, ids={path: ids})` with ids of
    `kdjax.rows.unique_ids`, and params caught up.

  Raises:
    ValueError: if `b1` is not below `sqrt(b2)`; by `update`, if `ids` lacks one of the tables.

  Example:
    >>> from kdjax import rows
    >>> params = {"table": jnp.ones([1000, 2]), "bias": jnp.zeros([2])}
    >>> tx = lazy_adamw(0.25, tables=lambda path, leaf: path[-1] == "table")
    >>> state = tx.init(params)
    >>> ids = {("table",): rows.unique_ids(jnp.array([7, 3, 7]), 1000)}
    >>> some = catch_up(state, rows.gather_rows(params, ids), ids)
    >>> grads = {"table": jnp.ones([3, 2]), "bias": jnp.ones([2])}
    >>> updates, state = tx.update(grads, state, some, ids=ids)
    >>> params = rows.put_rows(params, optax.apply_updates(some, updates), ids)
    >>> params["table"][jnp.array([3, 4, 7]), 0].round(2).tolist()
    [0.75, 1.0, 0.75]

  Reference:
    D. P. Kingma, J. Ba, Adam: A Method for Stochastic Optimization, ICLR 2015, arXiv:1412.6980;
    I. Loshchilov, F. Hutter, Decoupled Weight Decay Regularization, ICLR 2019, arXiv:1711.05101.
    The updates known as lazy Adam (TensorFlow Addons' LazyAdam, PyTorch's SparseAdam) leave
    skipped rows where they are and their moments undecayed; here both follow Adam.
  """
  if not 0 <= b1 < math.sqrt(b2):
    raise ValueError(f"b1={b1} must lie below the square root of b2={b2}")

  def schedule(step: Array) -> Array:
    rate = learning_rate(step) if callable(learning_rate) else learning_rate
    return jnp.asarray(rate, jnp.float32)

  def labels(params: Params) -> Params:
    return map_with_path(lambda path, leaf: "rows" if tables(path, leaf) else "dense", params)

  def decaying(params: Params) -> Params:
    return map_with_path(decays, params)

  dense = optax.adamw(learning_rate, b1, b2, eps, weight_decay=weight_decay, mask=decaying)
  by_rows = _adam_by_rows(
    schedule, b1, b2, eps, lambda path, leaf: weight_decay if decays(path, leaf) else 0.0
  )
  return optax.partition({"rows": by_rows, "dense": dense}, labels)


def _adam_by_rows(
  schedule: Schedule, b1: float, b2: float, eps: float, decay_of: Callable[[Path, Any], float]
) -> optax.GradientTransformationExtraArgs:
  """`lazy_adamw` of tables alone; `schedule` gives float32."""
  ratio = b1 / math.sqrt(b2)
  terms = math.ceil(math.log(NEGLIGIBLE) / math.log(ratio)) if ratio else 1

  def reach(step: Array, decay: float) -> Array:
    """G at `step`."""
    ahead = 1 + jax.lax.iota(jnp.int32, terms)
    rates = jax.vmap(schedule)(step + ahead - 1)  # The rate of step s is the schedule's at s - 1.
    at = (step + ahead).astype(jnp.float32)
    corrected = jnp.sqrt(_one_minus(b2, at)) / _one_minus(b1, at)
    kept = jnp.cumsum(jnp.log1p(-rates * decay))
    return jnp.sum(ratio ** ahead.astype(jnp.float32) * rates * corrected * jnp.exp(-kept))

  def init(params: Params) -> LazyAdamState:
    count = jnp.zeros([], jnp.int32)

    def each(dtype: Any) -> Params:
      return jax.tree.map(lambda x: jnp.zeros(x.shape[:1], dtype), params)

    return LazyAdamState(
      step=count,
      b1=jnp.float32(b1),
      b2=jnp.float32(b2),
      eps=jnp.float32(eps),
      fade=jax.tree.map(lambda x: jnp.zeros([], jnp.float32), params),
      reach=map_with_path(lambda path, x: reach(count, decay_of(path, x)), params),
      mu=jax.tree.map(jnp.zeros_like, params),
      nu=jax.tree.map(jnp.zeros_like, params),
      steps=each(jnp.int32),
      fades=each(jnp.float32),
      reaches=each(jnp.float32),
    )

  def update(updates, state, params=None, *, ids: Ids | None = None, **extra):
    del extra
    names = [path for path, _ in leaves_with_path(updates)]
    if ids is None or params is None or any(path not in ids for path in names):
      listed = ", ".join("/".join(path) for path in names)
      raise ValueError(f"lazy updates need params and the ids of the rows: ids= of {listed}")
    step = optax.safe_increment(state.step)
    rate = schedule(state.step)
    now = step.astype(jnp.float32)

    def change(path, grad, own, fade, mu, nu, steps, fades, reaches):
      at, decay = ids[path], decay_of(path, own)
      behind = step - take_at(steps, at)
      skipped = behind.astype(jnp.float32)
      first = _per_row(b1**skipped, grad) * take_at(mu, at) + (1 - b1) * grad
      second = _per_row(b2**skipped, grad) * take_at(nu, at) + (1 - b2) * grad * grad
      mean, square = first / _one_minus(b1, now), second / _one_minus(b2, now)
      moved = -rate * (mean / (jnp.sqrt(square) + eps) + decay * own)
      fade, far = fade + jnp.log1p(-rate * decay), reach(step, decay)
      # What is written depends on what was read: else XLA may write first, and copies the array.
      over = lambda old, value: put_at(old, at, value + 0 * take_at(old, at))  # noqa: E731
      return moved.astype(grad.dtype), (
        fade,
        far,
        put_at(mu, at, first),
        put_at(nu, at, second),
        steps.at[at].add(behind, mode="drop", indices_are_sorted=True, unique_indices=True),
        over(fades, fade),
        over(reaches, far),
      )

    kept = (state.fade, state.mu, state.nu, state.steps, state.fades, state.reaches)
    found = map_with_path(change, updates, params, *kept)
    structure: Any = jax.tree.structure(updates)
    moved, fresh = zip(*structure.flatten_up_to(found), strict=True) if names else ((), ())
    columns = zip(*fresh, strict=True) if names else ((),) * 7
    trees = [jax.tree.unflatten(structure, list(column)) for column in columns]
    constants = (state.b1, state.b2, state.eps)
    return jax.tree.unflatten(structure, list(moved)), LazyAdamState(step, *constants, *trees)

  return optax.GradientTransformationExtraArgs(init, update)


def catch_up(opt_state: optax.OptState, params: Params, ids: Ids | None = None) -> Params:
  """Tables as Adam would have them at the present step, whatever it skipped of them.

  The formula is in `lazy_adamw`. The optimizer's state stays as it is: it still tells from when a
  row is, so that only rows which an update writes next may be kept as they come from here.

  Args:
    opt_state: of a chain that holds `lazy_adamw`, in whatever place.
    params: as the transformation was initialised with; where `ids` names a table, its rows.
    ids: `{path: ids}` of the tables of which `params` have rows; None where they have all.

  Returns:
    Params, those that `lazy_adamw` updates by rows moved.

  Raises:
    ValueError: if the optimizer has no `lazy_adamw` in it.
  """
  moved: dict[Path, Array] = {}
  own = dict(leaves_with_path(params))
  states = [x for x in jax.tree.leaves(opt_state, is_leaf=_is_state) if _is_state(x)]
  if not states:
    raise ValueError("the optimizer updates no tables by rows: make it with lazy_adamw")
  for state in states:
    fields = [dict(leaves_with_path(tree)) for tree in state[4:]]
    for path in fields[0]:
      if ids is None:
        moved[path] = _catch_up(state, own[path], *(field[path] for field in fields))
      elif path in ids:
        rows = (take_at(field[path], ids[path]) for field in fields[2:])
        moved[path] = _catch_up(state, own[path], *(field[path] for field in fields[:2]), *rows)
  return map_with_path(lambda path, leaf: moved.get(path, leaf), params)


def _catch_up(state, own, fade, reach, mu, nu, steps, fades, reaches) -> Array:
  """Rows from their last update to the present step."""
  skipped = (state.step - steps).astype(jnp.float32)
  ratio = state.b1 / jnp.sqrt(state.b2)
  kept = jnp.exp(fade - fades)
  far = kept * reaches - ratio**skipped * reach
  # At least one step, or a row without any would divide 0 by 0.
  then = jnp.maximum(steps, 1).astype(jnp.float32)
  eps = _per_row(state.eps * jnp.sqrt(_one_minus(state.b2, then)), own)
  direction = mu / (jnp.sqrt(nu) + eps)
  new = _per_row(kept, own) * own - _per_row(far, own) * direction
  return jnp.where(_per_row(skipped, own) > 0, new, own).astype(own.dtype)


def _is_state(x: Any) -> bool:
  return isinstance(x, LazyAdamState)


def _one_minus(decay: Any, steps: Array) -> Array:
  """`1 - decay**steps`, exact for small ones."""
  return -jnp.expm1(steps * jnp.log(jnp.float32(decay)))


def _per_row(values: Array, like: Array) -> Array:
  """A number a row, shaped to multiply rows."""
  return values.reshape(values.shape + (1,) * (like.ndim - 1))
