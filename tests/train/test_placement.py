"""The step on a mesh of data, fully sharded and model axes equals the one on a single device."""

import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toy
from jax.sharding import PartitionSpec as P

from kdjax import losses, models, prune, reduce, tree
from kdjax.train import loop, objective, parallel, placement, state, step

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "models"))

import families

ITEMS, LENGTH, ROWS = 24, 6, 32
SIZES = {"num_items": ITEMS, "max_length": LENGTH, "num_layers": 1, "num_heads": 2}


def rows():
  rng = np.random.default_rng(0)
  items = rng.integers(0, ITEMS, (ROWS, LENGTH)).astype(np.int32)
  items[rng.random(ROWS) < 0.4, 4:] = -1
  labels = np.where(items >= 0, rng.integers(0, ITEMS, items.shape), -1).astype(np.int32)
  segments = (items >= 0).astype(np.int32)
  positions = np.broadcast_to(np.arange(LENGTH, dtype=np.int32), items.shape) * segments
  return {"items": items, "segments": segments, "positions": positions, "labels": labels}


def distilling(student_model, teacher_model, *, accumulate=1, mesh=None, teacher_mesh=None):
  """Cross-entropy and KL, AdamW, and a pruning transform with its masks."""

  def loss(student, teacher, batch):
    labels = batch["labels"]
    return losses.catalog_distillation_loss(
      student.logits, teacher.logits, jnp.maximum(labels, 0), where=labels >= 0,
      reduce_fn=reduce.totals,
    )  # fmt: skip

  student_apply, teacher_apply = student_model.apply, teacher_model.apply
  if mesh is not None:
    student_apply = placement.on_mesh(student_apply, mesh)
    teacher_apply = placement.on_mesh(teacher_apply, teacher_mesh)
  goal = objective.make_objective(
    student_apply, [objective.Term("distill", loss)], teacher_apply=teacher_apply
  )
  matrices = tree.under("student", select=tree.is_matrix)
  mask = prune.prune(prune.one_shot(0.5, step=1), select=matrices)
  # The gradient of a key's bias is 0 but for rounding, which Adam must not blow up.
  tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-2, eps=1e-3), mask)
  teacher = teacher_model.init(jax.random.key(1), rows())
  start = goal.init(jax.random.key(2), student_model.init(jax.random.key(0), rows()), teacher, {})
  make_step = step.make_train_step(goal, tx, accumulate=accumulate)
  return start, teacher, tx, make_step


def make_models(num_items):
  sizes = {**SIZES, "num_items": num_items}
  student = models.make_sasrec(**sizes, dim=8, mlp_dim=16, dropout=0.2)
  return student, models.make_sasrec(**{**sizes, "num_heads": 4}, dim=16, mlp_dim=32, dropout=0.0)


STUDENT, TEACHER = make_models(ITEMS)
INDEX = np.arange(ROWS, dtype=np.int32).reshape(2, 16)[[0, 1, 1, 0]]


@pytest.fixture(scope="module")
def alone():
  """Four steps on one device, by the number of items and of micro-batches."""
  found = {}

  def get(num_items, accumulate):
    key = num_items, accumulate
    if key not in found:
      start, teacher, tx, train_step = distilling(*make_models(num_items), accumulate=accumulate)
      run = parallel.jit_runner(train_step)
      found[key] = jax.device_get(
        run(state.init_state(start, tx), teacher, rows(), INDEX, 4, jax.random.key(3))
      )
    return found[key]

  return get


MESHES = [
  # Of the student, of the teacher, accumulate, items: 27 rows are split by columns.
  ({"fsdp": 8}, {"fsdp": 2, "model": 4}, 1, ITEMS),
  ({"data": 2, "fsdp": 2, "model": 2}, {}, 2, ITEMS),
  ({"model": 4}, {"fsdp": 4, "model": 2}, 1, ITEMS),
  ({"model": 4}, {"fsdp": 4, "model": 2}, 1, 27),
]


@pytest.mark.parametrize(("axes", "teacher_axes", "accumulate", "items"), MESHES)
def test_every_mesh_gives_the_step_of_one_device(alone, axes, teacher_axes, accumulate, items):
  # Dropout is on: its bits do not depend on how arrays are sharded.
  mesh = placement.make_mesh(**axes)
  teacher_mesh = placement.make_mesh(**teacher_axes) if teacher_axes else mesh
  start, teacher, tx, train_step = distilling(
    *make_models(items), accumulate=accumulate, mesh=mesh, teacher_mesh=teacher_mesh
  )
  first = state.init_state(start, tx, mesh=mesh)
  teacher = placement.put(teacher, placement.shardings(teacher, teacher_mesh))
  run = parallel.jit_runner(train_step, mesh=mesh)
  arrays = placement.put_rows(rows(), mesh)
  last, metrics = run(first, teacher, arrays, INDEX, 4, jax.random.key(3))

  # Every array stays split as it was put, and no device holds more than its share.
  places = placement.shardings(last, mesh)
  for (path, leaf), place in zip(tree.leaves_with_path(last), jax.tree.leaves(places), strict=True):
    assert leaf.sharding.is_equivalent_to(place, leaf.ndim), path
  share = bytes_of_a_device(last) / tree.count_bytes(last)
  split = mesh.shape["fsdp"] * mesh.shape["model"]
  slack = 1.5 if items == ITEMS else 2.0  # Of a table by columns `fsdp` divides no rows.
  assert share < slack / split
  split = teacher_mesh.shape["fsdp"] * teacher_mesh.shape["model"]
  assert bytes_of_a_device(teacher) / tree.count_bytes(teacher) < slack / split

  expected, expected_metrics = alone(items, accumulate)
  jax.tree.map(
    lambda a, e: np.testing.assert_allclose(a, e, rtol=1e-5, atol=1e-5),
    jax.device_get((last, metrics)),
    (expected, expected_metrics),
  )
  masks = [leaf for path, leaf in tree.leaves_with_path(expected.opt_state) if "masks" in path]
  assert any((~mask).mean() > 0.4 for mask in masks if mask.ndim == 2)


def bytes_of_a_device(state):
  return sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(state))


def test_the_compiled_step_takes_and_gives_a_share_of_the_state():
  """By XLA's own account of what a device holds."""
  mesh = placement.make_mesh(fsdp=4, model=2)
  start, teacher, make_step = toy.make()
  first = state.init_state(start.params, optax.adam(0.1), mesh=mesh)
  places = placement.shardings(first, mesh)
  batch = placement.put_rows({name: values[:16] for name, values in toy.rows().items()}, mesh)
  step_fn = jax.jit(make_step(), donate_argnums=0, out_shardings=(places, None))
  compiled = step_fn.lower(first, teacher, batch, jax.random.key(0)).compile()
  reported, whole = compiled.memory_analysis().alias_size_in_bytes, tree.count_bytes(first)
  assert bytes_of_a_device(first) <= reported < 1.5 * whole / 4  # No rule names the toy's arrays.


@pytest.mark.parametrize("name", sorted(families.FAMILIES))
def test_rules_fit_every_family(name):
  """Each big leaf is split where an axis divides, and nothing that does not divide is."""
  params = families.fresh(name)[1]
  mesh = placement.make_mesh(data=2, fsdp=2, model=2)
  for (path, leaf), place in zip(
    tree.leaves_with_path(params), jax.tree.leaves(placement.shardings(params, mesh)), strict=True
  ):
    for axis, split in enumerate(place.spec):
      assert split is None or leaf.shape[axis] % 2 == 0, path
    if any(size % 2 == 0 for size in leaf.shape):
      assert not place.is_fully_replicated, path
  jax.device_put(params, placement.shardings(params, mesh))


def test_rules_split_heads_and_hidden_units_as_megatron_does():
  params = jax.eval_shape(TEACHER.init, jax.random.key(0), rows())
  mesh = placement.make_mesh(data=4, fsdp=1, model=2)
  places = placement.shardings({"mu": {"student": params}}, mesh)["mu"]["student"]
  block = jax.tree.map(lambda place: place.spec, places["block_0"])
  assert block["attention"]["query"] == {"kernel": P("fsdp", "model"), "bias": P("model")}
  assert block["attention"]["out"] == {"kernel": P("model", "fsdp"), "bias": P("fsdp")}
  assert block["up"] == {"kernel": P("fsdp", "model"), "bias": P("model")}
  assert block["down"] == {"kernel": P("model", "fsdp"), "bias": P("fsdp")}
  assert places["item_embedding"]["embedding"].spec == P("model", "fsdp")
  mesh = placement.make_mesh(fsdp=2, model=4)
  cases = {(9, 6): P(None, "fsdp"), (12, 5): P("model"), (9, 5): P(), (9, 8): P(None, "model")}
  for shape, spec in cases.items():
    assert placement.shardings({"embedding": np.zeros(shape)}, mesh)["embedding"].spec == spec


def test_rows_that_do_not_divide_are_padded_and_never_taken():
  mesh = placement.make_mesh()
  values = np.arange(26, dtype=np.int32).reshape(13, 2)
  found = placement.put_rows({"x": values}, mesh)["x"]
  assert found.shape == (16, 2)
  np.testing.assert_array_equal(found[:13], values)
  assert not found[13:].any()
  assert {shard.data.shape for shard in found.addressable_shards} == {(2, 2)}


@pytest.mark.parametrize("resident", [True, False])
def test_fitting_on_a_mesh_equals_one_device(tmp_path, resident):
  ended = []
  for axes in (None, {"data": 2, "fsdp": 2, "model": 2}):
    mesh = None if axes is None else placement.make_mesh(**axes)
    start, teacher, make_step = toy.make(toy.apply)
    if mesh is not None:
      start = placement.put(start, placement.shardings(start, mesh))
      teacher = placement.put(teacher, placement.shardings(teacher, mesh))
    runner = parallel.jit_runner(make_step(), mesh=mesh)
    feed = loop.Feed(toy.rows(62), 16, seed=5, resident=resident, mesh=mesh)
    options = {"num_steps": 8, "steps_per_call": 3, "progress": False, "key": jax.random.key(7)}
    folder = tmp_path / str(mesh is None)
    last, _ = loop.fit(runner, start, feed, workdir=folder, teacher_params=teacher, **options)
    ended.append(jax.device_get(last))
  jax.tree.map(lambda a, e: np.testing.assert_allclose(a, e, rtol=1e-5, atol=1e-6), *ended)


def test_a_checkpoint_of_one_mesh_is_restored_on_another(tmp_path):
  ended = []
  for parts in ([8], [3, 8]):
    for count, num_steps in enumerate(parts):
      mesh = placement.make_mesh(fsdp=2 + 2 * count, model=1 + count)
      start, teacher, make_step = toy.make(toy.apply)
      start = placement.put(start, placement.shardings(start, mesh))
      runner = parallel.jit_runner(make_step(), mesh=mesh)
      feed = loop.Feed(toy.rows(), 16, seed=5, mesh=mesh)
      options = {"num_steps": num_steps, "progress": False, "key": jax.random.key(7)}
      last, _ = loop.fit(
        runner, start, feed, workdir=tmp_path / str(len(parts)), teacher_params=teacher, **options
      )
    ended.append(jax.device_get(last))
  jax.tree.map(lambda a, e: np.testing.assert_allclose(a, e, rtol=1e-5, atol=1e-6), *ended)


def test_a_mesh_of_too_many_devices_is_refused():
  with pytest.raises(ValueError, match="data=2 x fsdp=2 x model=4 needs 16 devices, there are 8"):
    placement.make_mesh(data=2, fsdp=2, model=4)
  with pytest.raises(ValueError, match="needs 16 devices"):
    placement.make_mesh(fsdp=4, model=4)
