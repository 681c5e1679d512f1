import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toy
from jax.sharding import PartitionSpec

from kdjax.reduce import Mean
from kdjax.train import objective, parallel, placement, state, step

INDEX = np.arange(64, dtype=np.int32).reshape(2, 32)[[0, 1, 1, 0]]


def run(runner, state, teacher, count=4, place=lambda x: x):
  state, metrics = runner(place(state), place(teacher), toy.rows(), INDEX, count, jax.random.key(3))
  return jax.device_get(state), jax.device_get(metrics)


def assert_close(actual, expected, **tolerance):
  jax.tree.map(lambda a, e: np.testing.assert_allclose(a, e, **tolerance), actual, expected)


def test_loss_and_gradient_are_totals_over_counts():
  state, teacher, make_step = toy.make()
  batch = toy.rows(8)
  _, metrics = make_step()(state, teacher, batch, jax.random.key(0))
  student = toy.plain_apply(state.params["student"], batch).logits
  other = toy.plain_apply(teacher, batch).logits
  ce = -np.asarray(jax.nn.log_softmax(student))[np.arange(8), batch["y"]]
  mse = np.mean((np.asarray(student) - np.asarray(other)) ** 2, -1)
  expected = 0.7 * ce[batch["valid"]].mean() + 0.3 * mse[batch["mine"]].mean()
  np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-6)
  assert metrics["label"].count == batch["valid"].sum()


def test_the_teacher_gets_no_gradient():
  state, teacher, _ = toy.make()
  goal = objective.make_objective(
    toy.plain_apply, [objective.Term("match", toy.match_loss)], teacher_apply=toy.plain_apply
  )
  grads = jax.grad(
    lambda t: goal.means(state.params, t, toy.rows(), None, {})[0]["match"].compute()
  )(teacher)
  assert all(not g.any() for g in jax.tree.leaves(grads))


def test_a_cached_teacher_equals_a_live_one():
  state, teacher, make_step = toy.make()
  batch = toy.rows(16)
  live = make_step()(state, teacher, batch, jax.random.key(0))
  cached = make_step()(
    state, None, {**batch, "teacher": toy.plain_apply(teacher, batch)}, jax.random.key(0)
  )
  assert_close(cached, live, rtol=1e-6)


@pytest.mark.parametrize("accumulate", [2, 4, 8])
def test_accumulation_equals_the_whole_batch(accumulate):
  whole = run(*_with_runner(toy.make()))
  parts = run(*_with_runner(toy.make(accumulate=accumulate)))
  assert_close(parts, whole, rtol=2e-5, atol=1e-6)


def _with_runner(made):
  state, teacher, make_step = made
  return parallel.jit_runner(make_step()), state, teacher


@pytest.mark.parametrize("data", [1, 4, 8])
def test_jit_over_a_mesh_equals_one_device(data):
  one = run(*_with_runner(toy.make(toy.apply)))
  state, teacher, make_step = toy.make(toy.apply)
  mesh = placement.make_mesh(data=data)
  many = run(
    parallel.jit_runner(make_step(), mesh=mesh),
    state,
    teacher,
    place=lambda tree: jax.device_put(tree, placement.shardings(tree, mesh)),
  )
  assert_close(many, one, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("devices", [1, 4, 8])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_pmap_equals_one_device(devices, accumulate):
  one = run(*_with_runner(toy.make()))
  state, teacher, make_step = toy.make(accumulate=accumulate)
  many = run(parallel.pmap_runner(make_step, devices=jax.devices()[:devices]), state, teacher)
  assert_close(many, one, rtol=2e-5, atol=1e-6)


def test_rows_split_over_the_model_axis_give_the_same_step():
  one = run(*_with_runner(toy.make()))
  state, teacher, make_step = toy.make()
  mesh = placement.make_mesh(data=2, model=4)
  place = lambda tree: jax.device_put(  # noqa: E731
    tree, placement.shardings(tree, mesh, rules=[(("v",), PartitionSpec("model"))])
  )
  runner = parallel.jit_runner(make_step(), mesh=mesh)
  placed = place(state)
  assert placed.params["student"]["v"].sharding.spec[0] == "model"
  again, _ = runner(placed, place(teacher), toy.rows(), INDEX, 4, jax.random.key(3))
  assert again.params["student"]["v"].sharding.spec[0] == "model"
  assert_close(jax.device_get(again), one[0], rtol=2e-5, atol=1e-6)


def test_only_count_steps_are_run():
  state, metrics = run(*_with_runner(toy.make()), count=3)
  assert state.step == 3
  assert (metrics["loss"][:3] > 0).all()
  assert metrics["loss"][3] == 0


def test_weights_may_be_schedules():
  terms = [objective.Term("label", toy.label_loss, lambda step: step / 10)]
  goal = objective.make_objective(toy.plain_apply, terms)
  assert goal.weights(jnp.int32(5))["label"] == 0.5


def test_learned_helpers_are_trained_with_the_student():
  def init(key, student, teacher):
    assert student.features["hidden"].shape == (4, 8)
    return {"scale": jnp.ones([])}

  def loss(params, student, teacher, batch):
    return jnp.mean((params["scale"] * student.logits - teacher.logits) ** 2)

  import optax

  from kdjax.train import state, step

  goal = objective.make_objective(
    toy.plain_apply, [objective.Term("hint", loss, init=init)], teacher_apply=toy.plain_apply
  )
  student, teacher = toy.init(jax.random.key(0)), toy.init(jax.random.key(1))
  params = goal.init(jax.random.key(2), student, teacher, toy.rows(4))
  tx = optax.sgd(0.1)
  before = state.init_state(params, tx)
  after, metrics = step.make_train_step(goal, tx)(before, teacher, toy.rows(4), jax.random.key(0))
  assert after.params["helpers"]["hint"]["scale"] != 1.0
  assert isinstance(metrics["hint"], Mean)
  assert objective.student_params(after.params).keys() == student.keys()


def test_memory_follows_the_rows_of_the_batch_and_is_not_trained():
  start, teacher, make_step = toy.make(more=(toy.RECALL,))
  batch = {name: values[8:16] for name, values in toy.rows().items()}
  after, metrics = make_step()(start, teacher, batch, jax.random.key(0))
  before, now = start.memory["recall"], after.memory["recall"]
  both = [toy.plain_apply(p, batch).logits for p in (start.params["student"], teacher)]
  np.testing.assert_allclose(now[8:16], (before[8:16] + sum(both) / 2) / 2, rtol=1e-5, atol=1e-6)
  np.testing.assert_array_equal(now[:8], before[:8])
  assert metrics["recall"].count == batch["mine"].sum()
  # Neither moments nor weight decay know of it.
  assert not any(leaf.shape == before.shape for leaf in jax.tree.leaves(after.opt_state))


@pytest.mark.parametrize("accumulate", [1, 4])
@pytest.mark.parametrize("devices", [1, 4])
def test_memory_is_that_of_the_whole_batch(accumulate, devices):
  one = run(*_with_runner(toy.make(more=(toy.RECALL,))))
  start, teacher, make_step = toy.make(more=(toy.RECALL,), accumulate=accumulate)
  mapped = parallel.pmap_runner(make_step, devices=jax.devices()[:devices])
  assert_close(run(mapped, start, teacher), one, rtol=2e-5, atol=1e-6)
  mesh = placement.make_mesh(data=devices)
  place = lambda tree: jax.device_put(tree, placement.shardings(tree, mesh))  # noqa: E731
  sharded = run(parallel.jit_runner(make_step(), mesh=mesh), start, teacher, place=place)
  assert_close(sharded, one, rtol=2e-5, atol=1e-6)


def test_what_a_term_only_logs_moves_nothing():
  def joint(student, teacher, batch):
    label = toy.label_loss(student, teacher, batch)
    return label, {"match": toy.match_loss(student, teacher, batch)}

  results = []
  for loss in (toy.label_loss, joint):
    goal = objective.make_objective(
      toy.plain_apply, [objective.Term("label", loss)], teacher_apply=toy.plain_apply
    )
    tx = optax.sgd(0.1)
    teacher = toy.init(jax.random.key(9))
    params = goal.init(jax.random.key(1), toy.init(jax.random.key(0)), teacher, toy.rows(4))
    make_step = step.make_train_step(goal, tx, accumulate=2)
    results.append(make_step(state.init_state(params, tx), teacher, toy.rows(), jax.random.key(0)))
  (plain_state, plain), (joint_state, logged) = results
  assert_close(joint_state.params, plain_state.params, rtol=1e-6)
  np.testing.assert_allclose(logged["loss"], plain["loss"], rtol=1e-6)
  assert set(logged) - set(plain) == {"match"}
  assert logged["match"].count == toy.rows()["mine"].sum()

  def twin(student, teacher, batch):
    return joint(student, teacher, batch)[0], {"label": joint(student, teacher, batch)[0]}

  goal = objective.make_objective(
    toy.plain_apply, [objective.Term("label", twin)], teacher_apply=toy.plain_apply
  )
  with pytest.raises(ValueError, match="label"):
    goal.means(params, teacher, toy.rows(), None, {})


def test_an_objective_refuses_twin_names_and_no_terms():
  term = objective.Term("label", toy.label_loss)
  for terms in ([], [term, term]):
    with pytest.raises(ValueError, match="unique names"):
      objective.make_objective(toy.plain_apply, terms)


@pytest.mark.parametrize("runner", ["jit", "pmap"])
def test_a_batch_that_does_not_divide_is_refused(runner):
  state, teacher, make_step = toy.make()
  if runner == "jit":
    run_fn = parallel.jit_runner(make_step(), mesh=placement.make_mesh(data=8))
  else:
    run_fn = parallel.pmap_runner(make_step)
  with pytest.raises(ValueError, match="multiple of 8"):
    run_fn(state, teacher, toy.rows(), INDEX[:, :30], 4, jax.random.key(0))


def test_accumulation_that_does_not_divide_is_refused():
  state, teacher, make_step = toy.make(accumulate=3)
  with pytest.raises(ValueError, match="accumulate=3 does not divide"):
    make_step()(state, teacher, toy.rows(8), jax.random.key(0))


def test_a_mesh_that_needs_more_devices_is_refused():
  with pytest.raises(ValueError, match="needs 16 devices, there are 8"):
    placement.make_mesh(data=8, model=2)
