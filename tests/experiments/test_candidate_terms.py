"""Losses on mined candidates: the same as from dense logits, without building them."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import candidate_terms
from experiments.loss_flags import LossSpec
from experiments.loss_view import DenseLogits, View
from kdjax.types import FactoredLogits, Outputs

ROWS, LENGTH = 16, 6
TERMS = {**candidate_terms.CATALOG, **candidate_terms.WHOLE}


def factored(items, width, seed):
  rng = np.random.default_rng(seed)
  shapes = (ROWS, LENGTH, width), (items, width), (items,)
  return FactoredLogits(*(jnp.asarray(rng.normal(size=s), jnp.float32) for s in shapes))


def term(name):
  real = jnp.ones((ROWS, LENGTH), bool).at[2, 4:].set(False)
  view = View(
    lambda outputs, batch: outputs.logits,
    labels=lambda batch: jnp.zeros((ROWS, LENGTH), jnp.int32),
    items=lambda batch: jnp.zeros((ROWS, LENGTH), jnp.int32),
    where=lambda batch: real,
    real=lambda batch: real,
    num_rows=ROWS,
  )
  made = TERMS[name](LossSpec(name, 1.0), view)
  batch = {"noise": jnp.arange(ROWS, dtype=jnp.uint32) * 7}

  def loss(student, teacher):
    return made.loss(Outputs(student, {}), Outputs(teacher, {}), batch).compute()

  return loss


@pytest.mark.parametrize("name", TERMS)
def test_factored_logits_give_what_dense_ones_do(name):
  student, teacher = factored(300, 5, 0), factored(300, 7, 1)
  loss = term(name)
  value, grads = jax.jit(jax.value_and_grad(loss))(student, teacher)

  @jax.jit
  @jax.value_and_grad
  def dense(student):
    return loss(DenseLogits(student.dense()), DenseLogits(teacher.dense()))

  expected, dense_grads = dense(student)
  np.testing.assert_allclose(value, expected, rtol=1e-4)
  assert expected > 0
  for a, e in zip(grads, dense_grads, strict=True):
    np.testing.assert_allclose(a, e, rtol=1e-3, atol=1e-5)


# Each way to mine: by the teacher's best, by the student's, by both, by users.
MINED = "stratified_pair", "student_collaborative", "importance_ranking", "item_relaxed_ranking"


@pytest.mark.parametrize("name", MINED)
def test_no_array_of_tokens_times_items(name):
  items = 200_000
  student, teacher = (
    jax.eval_shape(lambda width=width: factored(8, width, 0))._replace(
      table=jax.ShapeDtypeStruct((items, width), jnp.float32),
      bias=jax.ShapeDtypeStruct((items,), jnp.float32),
    )
    for width in (5, 7)
  )
  compiled = jax.jit(jax.value_and_grad(term(name))).lower(student, teacher).compile()
  tokens = ROWS * candidate_terms.RANKED
  shapes = re.findall(r"(?:f32|s32|u32|pred|bf16)\[([\d,]+)\]", compiled.as_text())
  largest = max(math.prod(map(int, shape.split(","))) for shape in set(shapes))
  assert items * 7 <= largest < tokens * items / 4
