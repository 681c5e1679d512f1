"""Masked reductions against sums written out, and the means that merge."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax.reduce import Mean, masked, reduce_loss, safe_divide, totals

VALUES = jnp.array([1.0, 2.0, 4.0, 8.0])
WHERE = jnp.array([True, False, True, False])


@pytest.mark.parametrize(
  ("reduce_fn", "where", "expected"),
  [
    (jnp.mean, None, 3.75),
    (jnp.mean, WHERE, 2.5),
    (jnp.sum, None, 15.0),
    (jnp.sum, WHERE, 5.0),
    (jnp.max, None, 8.0),
    (None, None, [1.0, 2.0, 4.0, 8.0]),
    (None, WHERE, [1.0, 0.0, 4.0, 0.0]),
  ],
)
def test_reduce_loss(reduce_fn, where, expected):
  actual = reduce_loss(VALUES, where=where, reduce_fn=reduce_fn)
  assert actual.dtype == jnp.float32
  np.testing.assert_array_equal(actual, np.float32(expected))


def test_any_other_function_gets_where():
  def largest(values, *, where):
    return jnp.max(values, where=where, initial=-jnp.inf)

  assert reduce_loss(VALUES, where=WHERE, reduce_fn=largest) == 4


def test_totals_gives_an_undivided_mean():
  mean = reduce_loss(VALUES, where=WHERE, reduce_fn=totals)
  assert (float(mean.total), float(mean.count), float(mean.compute())) == (5.0, 2.0, 2.5)


def test_mean_of_unequal_batches_is_the_mean_of_all():
  first, second = VALUES[:1], VALUES[1:]
  merged = totals(first) + totals(second)
  assert merged.compute() == jnp.mean(VALUES)
  assert merged.compute() != (first.mean() + second.mean()) / 2


def test_mean_crosses_scan_and_jit():
  def step(carry, value):
    return carry + totals(value[None]), None

  summed = jax.jit(lambda x: jax.lax.scan(step, Mean(0.0, 0.0), x)[0])(VALUES)
  assert summed.compute() == 3.75


def test_mean_crosses_psum():
  devices = 4
  fn = jax.vmap(lambda x: jax.lax.psum(totals(x, where=x > 1), "i").compute(), axis_name="i")
  values = jnp.arange(12.0).reshape(devices, 3)
  np.testing.assert_allclose(fn(values), np.full(devices, np.arange(2, 12).mean()), rtol=1e-6)


@pytest.mark.parametrize("reduce_fn", [jnp.mean, jnp.sum])
def test_all_masked_is_zero_with_zero_gradient(reduce_fn):
  value, grad = jax.value_and_grad(
    lambda x: reduce_loss(x, where=jnp.zeros(4, bool), reduce_fn=reduce_fn)
  )(VALUES)
  assert value == 0
  np.testing.assert_array_equal(grad, np.zeros(4))


def test_empty_batch_is_zero():
  assert reduce_loss(jnp.zeros([0]), where=None) == 0


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf])
def test_bad_values_stay_visible_only_where_they_count(bad):
  values = VALUES.at[0].set(bad)
  assert not np.isfinite(reduce_loss(values, where=WHERE))
  assert reduce_loss(values, where=~WHERE) == 5


def test_gradient_is_one_over_the_count():
  grad = jax.grad(lambda x: reduce_loss(x, where=WHERE))(VALUES)
  np.testing.assert_array_equal(grad, [0.5, 0, 0.5, 0])


def test_half_precision_adds_in_float32():
  ones = jnp.ones([4096], jnp.bfloat16)
  assert reduce_loss(ones, where=None, reduce_fn=jnp.sum) == 4096  # bfloat16 would stop at 256.


def test_where_of_another_shape_is_refused():
  with pytest.raises(ValueError, match=r"where has shape \(2,\) but the unreduced loss has \(4,\)"):
    reduce_loss(VALUES, where=jnp.ones(2, bool))


def test_safe_divide():
  assert safe_divide(3.0, 2.0) == 1.5
  assert safe_divide(3.0, 0.0) == 0
  assert jnp.isnan(safe_divide(jnp.nan, 2.0))
  assert jax.grad(lambda x: safe_divide(x, 0.0))(1.0) == 0


def test_masked_stops_the_gradient():
  grad = jax.grad(lambda x: jnp.sum(masked(x, WHERE) ** 2))(VALUES)
  np.testing.assert_array_equal(grad, [2, 0, 8, 0])
