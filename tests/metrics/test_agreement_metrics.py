"""Agreement of student and teacher against scipy and closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from kdjax import metrics
from kdjax.types import PAD, FactoredLogits


def test_overlap_counts_shared_ids_and_ignores_pads():
  student = jnp.array([[1, 2, 3], [4, PAD, PAD], [1, 2, 3]])
  teacher = jnp.array([[3, 9, 1], [4, 5, PAD], [PAD, PAD, PAD]])
  each = metrics.overlap_metric(student, teacher, reduce_fn=None)
  np.testing.assert_allclose(each, [2 / 3, 1 / 2, 0])
  assert metrics.overlap_metric(teacher[:2], teacher[:2]) == 1
  with pytest.raises(ValueError, match="student_ids"):
    metrics.overlap_metric(student, teacher[:2])


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=8, max_size=8))
def test_kendall_is_tau_b(pairs):
  a, b = (np.array(x, np.float32) for x in zip(*pairs, strict=True))
  got = float(jax.jit(metrics.kendall_metric)(a, b))
  if len(set(a)) == 1 or len(set(b)) == 1:
    assert got == 0
  else:
    np.testing.assert_allclose(got, scipy.stats.kendalltau(a, b).statistic, atol=1e-6)


def test_kl_agrees_with_scipy_and_is_0_at_equality():
  rng = np.random.default_rng(0)
  student, teacher = rng.normal(size=(2, 5, 7))
  p, q = (scipy.special.softmax(x / 2, axis=-1) for x in (teacher, student))
  got = metrics.kl_metric(
    jnp.asarray(student, jnp.float32),
    jnp.asarray(teacher, jnp.float32),
    temperature=2.0,
    reduce_fn=None,
  )
  np.testing.assert_allclose(got, scipy.special.rel_entr(p, q).sum(axis=-1), rtol=1e-4)
  assert metrics.kl_metric(jnp.asarray(teacher), jnp.asarray(teacher)) == 0
  assert metrics.kl_metric(jnp.zeros(2), jnp.array([0.0, -jnp.inf])) == pytest.approx(np.log(2))
  assert metrics.kl_metric(jnp.array([0.0, -jnp.inf]), jnp.zeros(2)) == jnp.inf
  with pytest.raises(ValueError, match="temperature"):
    metrics.kl_metric(jnp.zeros(2), jnp.zeros(2), temperature=0.0)


@pytest.mark.parametrize("rows", [(7,), (2, 3), (1,)])
def test_catalog_kl_equals_the_dense_one(rows):
  rng = np.random.default_rng(1)
  student = FactoredLogits(
    jnp.asarray(rng.normal(size=(*rows, 3)), jnp.float32),
    jnp.asarray(rng.normal(size=(20, 3)), jnp.float32),
    jnp.asarray(rng.normal(size=20), jnp.float32),
  )
  teacher = FactoredLogits(
    jnp.asarray(rng.normal(size=(*rows, 5)), jnp.float32),
    jnp.asarray(rng.normal(size=(20, 5)), jnp.float32),
  )
  got = metrics.catalog_kl_metric(
    student, teacher, temperature=1.5, users_per_block=4, reduce_fn=None
  )
  bias = student.bias.reshape((1,) * len(rows) + (-1,))
  dense = (student._replace(bias=None).dense() + bias, teacher.dense())
  expected = metrics.kl_metric(*dense, temperature=1.5, reduce_fn=None)
  np.testing.assert_allclose(got, expected, rtol=2e-5, atol=1e-6)
  with pytest.raises(ValueError, match="catalogues"):
    metrics.catalog_kl_metric(student, teacher._replace(table=teacher.table[:3]))
  with pytest.raises(ValueError, match="differ in rows"):
    metrics.catalog_kl_metric(student, teacher._replace(query=jnp.ones((9, 5))))


def test_top1_breaks_ties_at_random():
  teacher = jnp.array([[1.0, 3.0, 3.0, 0.0]])
  assert metrics.top1_metric(jnp.zeros((1, 4)), teacher) == 0.25
  assert metrics.top1_metric(jnp.array([[0.0, 1.0, 0.0, 0.0]]), teacher) == 0.5
  assert metrics.top1_metric(jnp.array([[9.0, 1.0, 0.0, 0.0]]), teacher) == 0


SCORED = {
  "kl": metrics.kl_metric,
  "kendall": metrics.kendall_metric,
  "top1": metrics.top1_metric,
}


@pytest.mark.parametrize("metric", SCORED.values(), ids=SCORED)
def test_scored_metrics_keep_the_contract(metric):
  rng = np.random.default_rng(2)
  student, teacher = (jnp.asarray(x, jnp.float32) for x in rng.normal(size=(2, 6, 9)))
  support = jnp.zeros((6, 9), bool).at[:, :4].set(True)
  noise = jnp.where(support, student, jnp.nan)
  got = metric(noise, teacher, support=support, reduce_fn=None)
  np.testing.assert_allclose(got, metric(student[:, :4], teacher[:, :4], reduce_fn=None), rtol=1e-5)
  where = jnp.arange(6) < 2
  np.testing.assert_allclose(
    metric(student, teacher, where=where), metric(student[:2], teacher[:2]), rtol=1e-5
  )
  assert metric(student, teacher, where=jnp.zeros(6, bool)) == 0
  assert jnp.all(metric(student, teacher, support=jnp.zeros((6, 9), bool), reduce_fn=None) == 0)
  assert jnp.isnan(metric(student.at[0, 0].set(jnp.nan), teacher))
  np.testing.assert_allclose(jax.jit(metric)(student, teacher), metric(student, teacher), rtol=1e-5)
  assert metric(student.astype(jnp.bfloat16), teacher).dtype == jnp.float32
  with pytest.raises(ValueError, match="teacher_scores has shape"):
    metric(student, teacher[:2])
