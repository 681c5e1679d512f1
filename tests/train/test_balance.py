"""Weights that adapt: closed forms, fixed points, and the same numbers however a batch is split."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toy

from kdjax.train import balance, objective, parallel, step
from kdjax.train.balance import Balance


def adaptive(how, **options):
  """The toy's state and step with factors that adapt."""
  ready, teacher, make_step = toy.make(balance=how, **options)
  memory = {**ready.memory, step.BALANCE: balance.init_balance(["label", "match"])}
  return ready._replace(memory=memory), teacher, make_step


def test_uncertainty_is_its_formula_and_settles_at_the_log_of_the_loss():
  terms = [
    objective.Term("near", lambda s, t, b: jnp.float32(0.1), 2.0),
    objective.Term("far", lambda s, t, b: jnp.float32(30.0)),
  ]
  goal = objective.make_objective(toy.plain_apply, balance.by_uncertainty(terms))
  batch = toy.rows(4)
  params = goal.init(jax.random.key(0), toy.init(jax.random.key(1)), None, batch)

  def total(params):
    means, _ = goal.means(params, None, batch, None, {})
    return sum(w * means[name].compute() for name, w in goal.weights(0).items())

  noise = {"near": 0.5, "far": -1.0}
  moved = {**params, "helpers": {n: {"log_variance": jnp.float32(s)} for n, s in noise.items()}}
  expected = 2 * (np.exp(-0.5) * 0.1 + 0.5) + np.exp(1.0) * 30 - 1.0
  np.testing.assert_allclose(total(moved), expected, rtol=1e-5)
  tx = optax.adam(0.1)
  opt, helpers = tx.init(params["helpers"]), params["helpers"]
  slope = jax.jit(jax.grad(lambda helpers: total({**params, "helpers": helpers})))
  for _ in range(200):
    updates, opt = tx.update(slope(helpers), opt)
    helpers = optax.apply_updates(helpers, updates)
  found = [float(helpers[name]["log_variance"]) for name in ("near", "far")]
  np.testing.assert_allclose(found, np.log([0.1, 30.0]), atol=0.02)


def test_uncertain_terms_keep_their_params_memory_and_logs():
  def loss(memory, params, student, teacher, batch):
    return jnp.mean(params * student.logits) ** 2 + memory, {"seen": objective.Mean(3.0, 1.0)}

  term = objective.Term(
    "term",
    loss,
    init=lambda key, student, teacher: jnp.float32(2.0),
    memory=objective.Memory(
      lambda key, student, teacher: jnp.float32(5.0),
      lambda memory, params, student, teacher, batch: params - memory,
    ),
  )
  (weighed,) = balance.by_uncertainty([term])
  plain, uncertain = (objective.make_objective(toy.plain_apply, [one]) for one in (term, weighed))
  student, batch = toy.init(jax.random.key(1)), toy.rows(4)
  found = []
  for goal in (plain, uncertain):
    params = goal.init(jax.random.key(0), student, None, batch)
    memory = goal.init_memory(jax.random.key(0), student, None, batch)
    found.append(goal.means(params, None, batch, None, memory))
  (before, old), (after, new) = found
  assert old == new == {"term": -3.0}
  assert after["seen"] == before["seen"]
  assert after["term"].compute() == after["term_alone"].compute() == before["term"].compute()


@pytest.mark.parametrize(("alpha", "shares"), [(0.0, (1, 1)), (1.5, (1, 1)), (1.0, (1, 3))])
def test_factors_settle_where_the_pulls_are_as_wanted(alpha, shares):
  memory = balance.init_balance(["a", "b"])
  first = {"a": jnp.float32(2), "b": jnp.float32(7)}
  norms = {"a": jnp.float32(1), "b": jnp.float32(4)}
  how = Balance(alpha=alpha, rate=0.01)
  update = jax.jit(lambda memory, losses: balance.rebalance(how, memory, losses, norms))
  memory = update(memory, first)
  losses = {name: first[name] * share for name, share in zip("ab", shares, strict=True)}
  for _ in range(300):
    memory = update(memory, losses)
  factors = np.array([memory[name]["factor"] for name in "ab"])
  wanted = (np.array(shares) / np.mean(shares)) ** alpha
  pulls = factors * np.array([1, 4])
  np.testing.assert_allclose(pulls / pulls.sum(), wanted / wanted.sum(), atol=0.03)
  np.testing.assert_allclose(factors.mean(), 1.0, rtol=1e-5)
  assert [float(memory[name]["first"]) for name in "ab"] == [2, 7]


def test_a_term_that_is_silent_loses_no_number():
  memory = balance.init_balance(["a", "b"])
  nothing = {"a": jnp.float32(0), "b": jnp.float32(0)}
  memory = balance.rebalance(Balance(), memory, nothing, nothing)
  assert all(float(x["factor"]) == 1 and float(x["first"]) == 0 for x in memory.values())


def test_the_step_uses_factors_and_norms_of_the_shared_leaves():
  how = Balance(lambda path, leaf: path == ("w",), alpha=0.0, rate=0.1)
  ready, teacher, make_step = adaptive(how)
  memory = {"label": 0.5, "match": 1.5}
  memory = {n: {"factor": jnp.float32(f), "first": jnp.float32(1)} for n, f in memory.items()}
  ready = ready._replace(memory={step.BALANCE: memory})
  batch = toy.rows(8)
  after, metrics = make_step()(ready, teacher, batch, jax.random.key(0))

  def losses(w):
    student = toy.plain_apply({**ready.params["student"], "w": w}, batch)
    other = toy.plain_apply(teacher, batch)
    return [fn(student, other, batch).compute() for fn in (toy.label_loss, toy.match_loss)]

  own = losses(ready.params["student"]["w"])
  np.testing.assert_allclose(metrics["loss"], 0.5 * 0.7 * own[0] + 1.5 * 0.3 * own[1], rtol=1e-5)
  norms = [np.linalg.norm(g) for g in jax.jacrev(losses)(ready.params["student"]["w"])]
  expected = balance.rebalance(
    how,
    memory,
    dict(zip(("label", "match"), own, strict=True)),
    dict(zip(("label", "match"), norms, strict=True)),
  )
  found = after.memory[step.BALANCE]
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), found, expected)
  assert float(metrics["label_factor"]) == 0.5


def test_micro_batches_and_devices_give_the_same_factors():
  index = np.arange(64, dtype=np.int32).reshape(2, 32)[[0, 1, 1]]
  how = Balance(rate=0.1)

  def run(make_runner, **options):
    ready, teacher, make_step = adaptive(how, **options)
    args = (teacher, toy.rows(), index, 3, jax.random.key(3))
    return jax.device_get(make_runner(make_step)(ready, *args)[0])

  jitted = lambda make_step: parallel.jit_runner(make_step())  # noqa: E731
  whole = run(jitted)
  assert whole.memory[step.BALANCE]["label"]["factor"] != 1
  for found in (run(parallel.pmap_runner), run(jitted, accumulate=4)):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), found, whole)


def test_no_shared_leaf_is_an_error():
  ready, teacher, make_step = adaptive(Balance(lambda path, leaf: False))
  with pytest.raises(ValueError, match="chooses no leaf"):
    make_step()(ready, teacher, toy.rows(8), jax.random.key(0))
