import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from kdjax import losses, models
from kdjax.reduce import totals
from kdjax.train import objective, state, step, teacher_queries
from kdjax.types import Outputs

ITEMS, LENGTH, ROWS = 300, 16, 10


def rows():
  rng = np.random.default_rng(0)
  items = rng.integers(0, ITEMS, (ROWS, LENGTH)).astype(np.int32)
  return {
    "items": items,
    "labels": np.roll(items, -1, axis=1),
    "segments": np.ones_like(items),
    "positions": np.broadcast_to(np.arange(LENGTH, dtype=np.int32), items.shape).copy(),
  }


def match(student, teacher, batch):
  return losses.catalog_kl_loss(
    student.logits, teacher.logits, where=batch["labels"] >= 0, reduce_fn=totals
  )


def one_step(teacher_apply, teacher_params, batch):
  student = models.make_sasrec(num_items=ITEMS, max_length=LENGTH, dim=8, num_layers=1)
  goal = objective.make_objective(
    student.apply, [objective.Term("kl", match)], teacher_apply=teacher_apply
  )
  params = goal.init(
    jax.random.key(0), student.init(jax.random.key(1), batch), teacher_params, batch
  )
  tx = optax.sgd(0.1)
  args = (state.init_state(params, tx), teacher_params, batch, jax.random.key(2))
  compiled = jax.jit(step.make_train_step(goal, tx)).lower(*args).compile()
  return compiled(*args), compiled.cost_analysis()["flops"]


@pytest.fixture
def teacher():
  model = models.make_sasrec(num_items=ITEMS, max_length=LENGTH, dim=32, num_layers=3)
  return model, model.init(jax.random.key(3), rows())


def test_a_step_from_kept_queries_is_the_live_one_without_the_teachers_body(teacher):
  model, params = teacher
  batch = jax.tree.map(jnp.asarray, rows())
  live, live_flops = one_step(model.apply, params, batch)
  queries = teacher_queries.encode_rows(model.apply, params, rows(), rows_per_call=4)
  assert queries.shape == (ROWS, LENGTH, 32)
  kept = {**batch, teacher_queries.NAME: jnp.asarray(queries)}
  cached, flops = one_step(teacher_queries.with_queries(model.apply), params, kept)
  jax.tree.map(lambda a, e: np.testing.assert_allclose(a, e, rtol=1e-5, atol=1e-6), cached, live)
  # At the least six products of 32 x 32 a position in each of three blocks.
  body = 3 * 6 * 2 * 32 * 32 * ROWS * LENGTH
  assert live_flops - flops > body


def test_queries_are_kept_in_the_type_asked_for(teacher):
  model, params = teacher
  half = teacher_queries.encode_rows(model.apply, params, rows(), dtype="bfloat16")
  full = teacher_queries.encode_rows(model.apply, params, rows())
  assert half.dtype == jnp.bfloat16
  np.testing.assert_allclose(half.astype(np.float32), full, rtol=1e-2, atol=1e-2)


def test_a_teacher_without_queries_is_refused():
  def dense(params, batch, *, key=None):
    return Outputs(jnp.zeros([2, 3]), {})

  with pytest.raises(ValueError, match="FactoredLogits"):
    teacher_queries.encode_rows(dense, {}, rows())
