"""The train step over rows of tables: equal to the step over whole tables, however it is run."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toy
from jax.sharding import NamedSharding, PartitionSpec

from kdjax import reduce
from kdjax.models import make_mf, make_two_tower
from kdjax.train import (
  LazyAdamState,
  Term,
  catch_up,
  freeze,
  init_state,
  jit_runner,
  lazy_adamw,
  make_mesh,
  make_objective,
  make_train_step,
  pmap_runner,
  shardings,
)
from kdjax.tree import under

USERS, ITEMS = 48, 32
INDEX = np.random.default_rng(0).integers(0, 120, (6, 16)).astype(np.int32)
MODEL = make_mf(num_users=USERS, num_items=ITEMS, dim=4)
PATHS = (("user_embedding", "embedding"), ("item_embedding", "embedding"), ("item_bias",))


def arrays():
  rng = np.random.default_rng(1)
  items = rng.integers(0, ITEMS, (120, 3)) ** 2 // ITEMS
  return {
    "user": rng.integers(0, USERS, 120).astype(np.int32),
    "candidates": items.astype(np.int32),
    "valid": rng.random(120) < 0.7,
  }


def loss(student, teacher, batch):
  del teacher
  scores = student.logits.at(batch["candidates"])
  return reduce.totals(jax.nn.softplus(scores[:, 1:].sum(1) - scores[:, 0]), where=batch["valid"])


def read_rows(batch):
  items = batch["candidates"]
  return dict(zip(PATHS, (batch["user"], items, items), strict=True))


def is_table(path, leaf):
  del leaf
  return path in PATHS


def make(lazy, wrap=lambda tx: tx, **options):
  """A state and `make_step`."""
  goal = make_objective(MODEL.apply, [Term("label", loss)])
  rate = optax.linear_schedule(0.1, 0.02, 6)
  if lazy:
    tx = wrap(lazy_adamw(rate, tables=under("student", select=is_table), weight_decay=0.1))
    options["read_rows"] = read_rows
  else:
    tx = wrap(optax.adamw(rate, weight_decay=0.1, mask=decays))
  batch = {name: jnp.asarray(x[:4]) for name, x in arrays().items()}
  student = MODEL.init(jax.random.key(2), batch)
  start = init_state(goal.init(jax.random.key(3), student, None, batch), tx)
  return start, functools.partial(make_train_step, goal, tx, **options)


def decays(params):
  return jax.tree.map(lambda x: x.ndim >= 2, params)


def settled(state):
  is_lazy = lambda x: isinstance(x, LazyAdamState)  # noqa: E731
  if not any(map(is_lazy, jax.tree.leaves(state.opt_state, is_leaf=is_lazy))):
    return jax.device_get(state.params)
  return jax.device_get(catch_up(state.opt_state, state.params))


def run(state, make_step, mesh=None, place=lambda x: x):
  runner = jit_runner(make_step(), mesh=mesh)
  state, metrics = runner(place(state), None, arrays(), INDEX, 6, jax.random.key(4))
  return settled(state), jax.device_get(metrics), state


@pytest.fixture(scope="module")
def dense():
  return run(*make(lazy=False))


def assert_same(found, expected):
  close = lambda a, e: np.testing.assert_allclose(a, e, rtol=1e-4, atol=1e-5)  # noqa: E731
  jax.tree.map(close, found[:2], expected[:2])


@pytest.mark.parametrize("accumulate", [1, 4])
def test_equal_to_whole_tables(dense, accumulate):
  found = run(*make(lazy=True, accumulate=accumulate))
  assert_same(found, dense)
  behind = found[2].params["student"]["user_embedding"]["embedding"]
  assert np.abs(behind - dense[0]["student"]["user_embedding"]["embedding"]).max() > 1e-4


def test_clipped_by_the_norm_of_the_whole_gradient():
  wrap = lambda tx: optax.chain(optax.clip_by_global_norm(0.05), tx)  # noqa: E731
  assert_same(run(*make(lazy=True, wrap=wrap)), run(*make(lazy=False, wrap=wrap)))


def test_a_frozen_table_stays():
  wrap = lambda tx: freeze(tx, lambda path, leaf: "user_embedding" in path)  # noqa: E731
  start, make_step = make(lazy=True, wrap=wrap)
  before = jax.device_get(start.params)["student"]["user_embedding"]["embedding"]
  found = run(start, make_step)
  assert_same(found, run(*make(lazy=False, wrap=wrap)))
  np.testing.assert_array_equal(found[0]["student"]["user_embedding"]["embedding"], before)


@pytest.mark.parametrize(("data", "model"), [(8, 1), (2, 4), (1, 8)])
def test_over_a_mesh_with_tables_split_by_rows(dense, data, model):
  mesh = make_mesh(data=data, model=model)
  place = lambda tree: jax.device_put(tree, shardings(tree, mesh))  # noqa: E731
  found = run(*make(lazy=True), mesh=mesh, place=place)
  assert_same(found, dense)
  states = [x for x in jax.tree.leaves(found[2].opt_state) if x.ndim == 2]
  assert len(states) == 4  # Two moments of two tables, split as the tables are.
  assert all(x.sharding.spec[:1] == ("model",) for x in states)


def test_resumed_is_never_stopped():
  start, make_step = make(lazy=True)
  runner = jit_runner(make_step())
  begun = [make(lazy=True)[0] for _ in range(2)]
  whole, _ = runner(begun[0], None, arrays(), INDEX, 6, jax.random.key(4))
  half, _ = runner(begun[1], None, arrays(), INDEX, 3, jax.random.key(4))
  settled(half)  # Validated on the way: nothing is written back.
  again = np.concatenate([INDEX[3:], INDEX[:3]])
  resumed, _ = runner(half, None, arrays(), again, 3, jax.random.key(4))
  jax.tree.map(np.testing.assert_array_equal, resumed, whole)
  del start


def test_a_compiled_step_touches_no_table_whole():
  size = 50_000
  model = make_mf(num_users=size, num_items=size, dim=8)
  goal = make_objective(model.apply, [Term("label", loss)])
  tx = optax.chain(
    optax.clip_by_global_norm(1.0), lazy_adamw(0.1, tables=under("student", select=is_table))
  )
  shapes = jax.eval_shape(model.init, jax.random.key(0), arrays())
  state = jax.eval_shape(lambda p: init_state({"student": p, "helpers": {}}, tx), shapes)
  step = make_train_step(goal, tx, read_rows=read_rows)
  compiled = jit_runner(step).lower(state, None, arrays(), INDEX, 6, jax.random.key(0)).compile()
  assert compiled.memory_analysis().temp_size_in_bytes < 4 * size
  assert not toy.touched_whole(compiled.as_text(), size)


def test_tables_that_are_split_stay_where_they_are():
  """Over a mesh no device gets another's rows, but for those that a batch reads."""
  size = 50_000
  model = make_mf(num_users=size, num_items=size, dim=8)
  goal = make_objective(model.apply, [Term("label", loss)])
  tx = lazy_adamw(0.1, tables=under("student", select=is_table))
  shapes = jax.eval_shape(model.init, jax.random.key(0), arrays())
  state = jax.eval_shape(lambda p: init_state({"student": p, "helpers": {}}, tx), shapes)
  mesh = make_mesh(data=2, model=4)
  places = shardings(state, mesh)
  split = NamedSharding(mesh, PartitionSpec("data"))
  step = jax.jit(
    make_train_step(goal, tx, read_rows=read_rows),
    donate_argnums=0,
    in_shardings=(places, None, split, None),
    out_shardings=(places, None),
  )
  batch = {name: x[:16] for name, x in arrays().items()}
  compiled = step.lower(state, None, batch, jax.random.key(0)).compile()
  assert compiled.memory_analysis().temp_size_in_bytes < 4 * size / 4
  for rows in (size, size // 4):
    assert not toy.touched_whole(compiled.as_text(), rows)


def test_two_towers_see_the_items_of_the_batch_alone():
  model = make_two_tower(num_items=ITEMS, dim=4, hidden=(5,), normalize=True)
  items = jnp.array([[3, 9, 4, -1], [9, 9, 1, 0]])
  batch = {
    "items": items,
    "segments": (items >= 0).astype(jnp.int32),
    "positions": jnp.broadcast_to(jnp.arange(4), (2, 4)),
    "valid": jnp.ones([2, 4], bool),
    "candidates": jnp.broadcast_to(jnp.array([9, 3, 17]), (2, 4, 3)),
    "item_features": jax.random.normal(jax.random.key(1), (ITEMS, 2)),
  }

  def of_sequences(student, teacher, batch):
    del teacher
    return reduce.totals(jnp.sum(student.logits.at(batch["candidates"]) ** 2, -1))

  table = ("item_embedding", "embedding")
  found = []
  for lazy in (False, True):
    goal = make_objective(model.apply, [Term("label", of_sequences)])
    # Adam with a small epsilon makes whole steps of what gradients of 0 are rounded to.
    tx = optax.adam(0.1, eps=1e-2)
    options = {}
    if lazy:
      tx = lazy_adamw(0.1, tables=lambda path, leaf: path[1:] == table, eps=1e-2)
      ids = jnp.concatenate([items.reshape(-1), jnp.array([9, 3, 17])])
      options["read_rows"] = lambda batch, ids=ids: {table: ids}
    params = goal.init(jax.random.key(0), model.init(jax.random.key(0), batch), None, batch)
    step = jax.jit(make_train_step(goal, tx, **options))
    state, _ = step(init_state(params, tx), None, batch, jax.random.key(0))
    found.append(state.params)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), *found)


def test_replicas_and_wrong_paths_are_refused():
  _, make_step = make(lazy=True)
  with pytest.raises(ValueError, match="jit_runner"):
    pmap_runner(make_step)
  state, make_step = make(lazy=False)
  step = make_step(read_rows=lambda batch: {("table",): batch["user"]})
  with pytest.raises(ValueError, match="no table at student/table"):
    step(state, None, arrays(), jax.random.key(0))
  with pytest.raises(ValueError, match="make it with lazy_adamw"):
    make_step(read_rows=read_rows)(state, None, arrays(), jax.random.key(0))
