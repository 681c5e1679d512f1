"""The train step: one pure function, with no collective in it."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from kdjax.reduce import Mean, safe_divide
from kdjax.rows import Ids, gather_rows, put_rows, stand_in, unique_ids
from kdjax.train.balance import Balance, rebalance, shared_leaves, with_leaves
from kdjax.train.lazy import catch_up
from kdjax.train.objective import Objective, student_params
from kdjax.train.state import TrainState
from kdjax.tree import leaves_with_path
from kdjax.types import Array, Batch, Params, Path

BALANCE = "balance"  # Where the memory keeps what `Balance` adapts; no term may be called so.
ReadRows = Callable[[Batch], Mapping[Path, Array]]
Augment = Callable[[Batch, Array, Array], Batch]
Sample = Callable[[Params, Batch, Array], Batch]  # (student's params, batch, key) -> batch.
TrainStep = Callable[[TrainState, Params, Batch, Array], tuple[TrainState, dict[str, Any]]]


def make_train_step(
  objective: Objective,
  tx: optax.GradientTransformation,
  *,
  augment: Augment | None = None,
  sample: Sample | None = None,
  balance: Balance | None = None,
  read_rows: ReadRows | None = None,
  accumulate: int = 1,
  merge: Callable[[Any], Any] | None = None,
) -> TrainStep:
  r"""A step `(state, teacher_params, batch, key) -> (state, metrics)`.

  The gradient is that of $\sum_k w_k\, \text{total}_k / \text{count}_k$ where totals and counts run
  over every micro-batch and, through `merge`, over every device: never a mean of means.

  Args:
    objective: the weighted terms.
    tx: the optax transformation; a pruning transform goes last in its chain.
    augment: random work on the batch (negatives, masked items), `(batch, key, step) -> batch`
      with the number of the step, int32.
    sample: what the student makes of the batch before anything is learned from it, such as texts
      that it writes itself, `(student_params, batch, key) -> batch`; see
      `kdjax.train.on_policy.make_sampler`. No gradient passes through it.
    balance: how factors of the terms' weights adapt, or None. They are remembered in the memory:
      `init_state(params, tx, {**memory, BALANCE: init_balance(names)})`.
    read_rows: which rows of the student's tables a batch reads, `(batch) -> {path: int ids}`, after
      `augment`; for a `tx` with `kdjax.train.lazy_adamw`, whose tables these are. The model sees
      `kdjax.rows.GatheredRows` in place of them, gradients and updates are of those rows, and no
      step reads or writes a table whole. None for whole tables.
    accumulate: micro-batches whose gradients are summed before one update; it divides the batch.
    merge: how trees of sums add up across devices. The runner decides: None under `jit`, where a
      sharded batch is still one array; a `psum` under `pmap`.

  Returns:
    The step. Its metrics are a `Mean` for each term and float32 scalars `loss` and `grad_norm`.
    The key is folded with the step's number, so resuming needs no key state.

  Raises:
    ValueError: if `accumulate` is below 1 or, at tracing, does not divide the batch; with
      `read_rows`, if the runner merges (each device's batch reads rows of its own), or at tracing
      if a path is no leaf of the student.
  """
  if accumulate < 1:
    raise ValueError(f"accumulate must be at least 1, got {accumulate}")
  if read_rows is not None and merge is not None:
    raise ValueError("read_rows needs one batch that all devices share: run it by jit_runner")
  merge = merge or (lambda tree: tree)

  # What looks at the gradients themselves, as pruning by movement does, gets them by name.
  update = optax.with_extra_args_support(tx).update

  def train_step(state, teacher_params, batch, key):
    key = jax.random.fold_in(key, state.step)
    augment_key, model_key = jax.random.split(key)
    if augment is not None:
      batch = augment(batch, augment_key, state.step)
    if sample is not None:
      # Once for all micro-batches. A key of its own: without it the other two are the same.
      batch = sample(student_params(state.params), batch, jax.random.fold_in(key, 2))
    weights = objective.weights(state.step)
    if balance is not None:
      factors = state.memory[BALANCE]
      weights = {name: factors[name]["factor"] * w for name, w in weights.items()}
    ids = _unique_rows(read_rows, batch, state.params)
    # Every row as Adam would have it by now, had it never been skipped.
    params = catch_up(state.opt_state, gather_rows(state.params, ids), ids) if ids else state.params

    def means_of(params, batch, key):
      seen = stand_in(params, state.params, ids)
      return objective.means(seen, teacher_params, batch, key, state.memory)

    # Counts depend on the batch alone, so the compiler drops the models from this first call.
    means, _ = means_of(params, batch, model_key)
    counts = merge({name: mean.count for name, mean in means.items()})

    def loss_fn(params, micro, micro_key):
      means, changes = means_of(params, micro, micro_key)
      loss = sum(w * safe_divide(means[name].total, counts[name]) for name, w in weights.items())
      return loss, ({name: mean.total for name, mean in means.items()}, changes)

    def grad_fn(params, micro, micro_key):
      found = jax.value_and_grad(loss_fn, has_aux=True)(params, micro, micro_key)
      if balance is None:
        return *found, {}

      def each(shared):
        student = with_leaves(params["student"], shared)
        means, _ = means_of({**params, "student": student}, micro, micro_key)
        return {name: safe_divide(means[name].total, counts[name]) for name in weights}

      return *found, jax.jacrev(each)(shared_leaves(balance, params["student"]))

    if accumulate == 1:
      (loss, sums), grads, pulls = grad_fn(params, batch, model_key)
    else:
      parts = jax.tree.map(lambda x: _split(x, accumulate), batch)
      keys = jax.random.split(model_key, accumulate)
      shapes = jax.eval_shape(grad_fn, params, jax.tree.map(lambda x: x[0], parts), keys[0])
      zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)

      def add(carry, part):
        return jax.tree.map(jnp.add, carry, grad_fn(params, *part)), None

      ((loss, sums), grads, pulls), _ = jax.lax.scan(add, zeros, (parts, keys))

    loss, (totals, changes), grads, pulls = merge((loss, sums, grads, pulls))
    extra = {"grad": grads, "ids": ids} if ids else {"grad": grads}
    updates, opt_state = update(grads, state.opt_state, params, **extra)
    params = put_rows(state.params, optax.apply_updates(params, updates), ids)
    metrics = {name: Mean(totals[name], counts[name]) for name in totals}
    metrics |= {"loss": loss, "grad_norm": optax.tree.norm(grads)}
    kept = {name: state.memory[name] for name in changes}
    memory = {**state.memory, **jax.tree.map(jnp.add, kept, changes)}
    if balance is not None:
      losses = {name: safe_divide(totals[name], counts[name]) for name in weights}
      norms = {name: optax.tree.norm(pull) for name, pull in pulls.items()}
      memory[BALANCE] = rebalance(balance, memory[BALANCE], losses, norms)
      metrics |= {f"{name}_factor": factors[name]["factor"] for name in weights}
    return TrainState(state.step + 1, params, opt_state, memory), metrics

  return train_step


def _unique_rows(read_rows: ReadRows | None, batch: Batch, params: Params) -> Ids:
  """What `read_rows` says, by the paths of what is trained; {} without it."""
  if read_rows is None:
    return {}
  sizes = {path: leaf.shape[0] for path, leaf in leaves_with_path(params) if jnp.ndim(leaf)}
  named = {("student", *path): ids for path, ids in read_rows(batch).items()}
  return {path: unique_ids(ids, sizes.get(path, 1)) for path, ids in named.items()}


def _split(x: Array, parts: int) -> Array:
  if x.shape[0] % parts:
    raise ValueError(f"accumulate={parts} does not divide the batch of {x.shape[0]} rows")
  # Every part takes rows from all over the batch: where devices hold runs of rows, none is idle.
  return x.reshape(x.shape[0] // parts, parts, *x.shape[1:]).swapaxes(0, 1)
