"""Tables updated by rows: equal to Adam on whole tables, and no step that touches one whole."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toy

from kdjax import rows
from kdjax.train import catch_up, lazy_adamw
from kdjax.tree import is_matrix, map_with_path

V, D = 30, 4
KEYS = jax.random.split(jax.random.key(0), 4)
PARAMS = {
  "table": jax.random.normal(KEYS[0], (V, D)),
  "bias": jax.random.normal(KEYS[1], (V,)),
  "out": jax.random.normal(KEYS[2], (D, D)),
}
TABLES = (("table",), ("bias",))
SCHEDULES = {
  "constant": 0.05,
  "cosine": optax.warmup_cosine_decay_schedule(0.0, 0.1, 5, 60),
  "steps": optax.piecewise_constant_schedule(0.1, {20: 0.1, 35: 5.0}),
}


def is_table(path, leaf):
  del leaf
  return path in TABLES


def loss(params, at, target):
  table, bias = params["table"], params["bias"]
  found = jnp.tanh(table[at] @ params["out"]) + bias[at][:, None]
  return jnp.sum((found - target) ** 2)


def batches(count, *, seed=0):
  """Rows 0 to 9 often, others seldom and 29 once alone; with duplicates."""
  rng = np.random.default_rng(seed)
  for step in range(count):
    at = rng.integers(0, 10, 6)
    if step % 7 == 3:
      at[:2] = rng.integers(10, 29, 2)
    if step == 1:
      at[0] = 29
    yield jnp.asarray(at), jnp.asarray(rng.normal(size=(6, D)), jnp.float32)


def lazily(tx, steps, params=PARAMS, **options):
  @jax.jit
  def step(params, state, at, target):
    found = rows.unique_ids(at, V)
    ids = dict.fromkeys(TABLES, found)
    some = catch_up(state, rows.gather_rows(params, ids), ids)
    grads = jax.grad(lambda p: loss(rows.stand_in(p, params, ids), at, target))(some)
    updates, state = tx.update(grads, state, some, ids=ids, **options)
    return rows.put_rows(params, optax.apply_updates(some, updates), ids), state

  state = tx.init(params)
  for batch in batches(steps):
    params, state = step(params, state, *batch)
  return params, state


def densely(tx, steps, params=PARAMS):
  @jax.jit
  def step(params, state, at, target):
    updates, state = tx.update(jax.grad(loss)(params, at, target), state, params)
    return optax.apply_updates(params, updates), state

  state = tx.init(params)
  for batch in batches(steps):
    params, state = step(params, state, *batch)
  return params


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
def test_equal_to_dense_adamw(schedule, weight_decay):
  rate = SCHEDULES[schedule]
  matrices = lambda params: map_with_path(is_matrix, params)  # noqa: E731
  dense = densely(optax.adamw(rate, weight_decay=weight_decay, mask=matrices), 60)
  params, state = lazily(lazy_adamw(rate, tables=is_table, weight_decay=weight_decay), 60)
  behind = np.abs(params["table"] - dense["table"]).max()
  found = catch_up(state, params)
  for name, value in dense.items():
    np.testing.assert_allclose(found[name], value, atol=1e-5, err_msg=name)
  assert behind > 1e-3  # What is caught up is no rounding.


def test_other_constants_and_what_stands_before_and_around():
  """Clipping sees the norm of the whole gradient; frozen leaves stay."""
  constants = {"b1": 0.5, "b2": 0.9, "eps": 1e-12}
  chain = lambda tx: optax.chain(optax.clip_by_global_norm(0.5), tx)  # noqa: E731
  dense = densely(chain(optax.adam(0.05, **constants)), 40)
  params, state = lazily(chain(lazy_adamw(0.05, tables=is_table, **constants)), 40)
  for name, value in catch_up(state, params).items():
    np.testing.assert_allclose(value, dense[name], atol=1e-5, err_msg=name)


def test_without_momentum_no_row_moves_between():
  params, state = lazily(lazy_adamw(0.05, tables=is_table, b1=0.0), 20)
  dense = densely(optax.adam(0.05, b1=0.0), 20)
  for name, value in catch_up(state, params).items():
    np.testing.assert_allclose(value, dense[name], atol=1e-5, err_msg=name)
    np.testing.assert_allclose(value, params[name], atol=1e-6)


def test_a_row_that_no_batch_names_stays_as_it_is():
  params, state = lazily(lazy_adamw(0.05, tables=is_table), 6)
  seen = np.unique(np.concatenate([np.asarray(at) for at, _ in batches(6)]))
  others = np.setdiff1d(np.arange(V), seen)
  np.testing.assert_array_equal(catch_up(state, params)["table"][others], PARAMS["table"][others])


def test_catching_up_some_rows_is_catching_up_all():
  params, state = lazily(lazy_adamw(0.05, tables=is_table, weight_decay=0.1), 30)
  whole = catch_up(state, params)
  ids = {("table",): jnp.array([0, 11, 29])}
  some = catch_up(state, rows.gather_rows(params, ids), ids)
  np.testing.assert_allclose(some["table"], whole["table"][ids["table",]], atol=1e-7)
  np.testing.assert_array_equal(some["bias"], params["bias"])


def test_bad_options_are_refused():
  with pytest.raises(ValueError, match="square root of b2"):
    lazy_adamw(0.1, tables=is_table, b1=0.99, b2=0.9)
  tx = lazy_adamw(0.1, tables=is_table)
  with pytest.raises(ValueError, match=r"ids= of bias, table"):
    tx.update(PARAMS, tx.init(PARAMS), PARAMS, ids={("table",): jnp.array([1])})


def test_no_table_is_touched_whole_in_a_compiled_step():
  """Nothing as large as the table is computed, copied or kept beside it; the state is donated."""
  size, width = 200_000, 16
  tx = lazy_adamw(0.05, tables=is_table)
  shapes = {
    "table": jax.ShapeDtypeStruct((size, width), jnp.float32),
    "bias": jax.ShapeDtypeStruct((size,), jnp.float32),
    "out": jax.ShapeDtypeStruct((width, width), jnp.float32),
  }

  def step(carry, at, target):
    params, state = carry
    ids = dict.fromkeys(TABLES, rows.unique_ids(at, size))
    some = catch_up(state, rows.gather_rows(params, ids), ids)
    grads = jax.grad(lambda p: loss(rows.stand_in(p, params, ids), at, target))(some)
    updates, state = tx.update(grads, state, some, ids=ids)
    return rows.put_rows(params, optax.apply_updates(some, updates), ids), state

  def many(carry, at, target):
    return jax.lax.fori_loop(0, 3, lambda nth, carry: step(carry, at[nth], target), carry)

  carry = (shapes, jax.eval_shape(tx.init, shapes))
  at = jax.ShapeDtypeStruct((3, 64), jnp.int32)
  target = jax.ShapeDtypeStruct((64, width), jnp.float32)
  compiled = jax.jit(many, donate_argnums=0).lower(carry, at, target).compile()
  memory = compiled.memory_analysis()
  assert memory.temp_size_in_bytes < 4 * size / 10  # Not a number a row, let alone a row.
  assert memory.alias_size_in_bytes >= 3 * 4 * size * width
  assert not toy.touched_whole(compiled.as_text(), size)

  def dense_step(params, state, at, target):
    updates, state = optax.adam(0.05).update(jax.grad(loss)(params, at, target), state, params)
    return optax.apply_updates(params, updates), state

  some = jax.ShapeDtypeStruct((64,), jnp.int32)
  arguments = (shapes, jax.eval_shape(optax.adam(0.05).init, shapes), some, target)
  dense = jax.jit(dense_step).lower(*arguments).compile()
  assert {"multiply", "broadcast"} <= set(toy.touched_whole(dense.as_text(), size))
