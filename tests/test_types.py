"""FactoredLogits against the matrix it stands for, with plain and with int8-like tables."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax.types import MASK, PAD, FactoredLogits


class Scaled(NamedTuple):
  """A table that is not an array: rows of int8 with one scale a row."""

  values: jax.Array
  scale: jax.Array

  @property
  def shape(self):
    return self.values.shape

  def rdot(self, query):
    scale = jnp.broadcast_to(self.scale[:, 0], (*query.shape[:-1], self.shape[0]))
    return jnp.einsum("...d,vd->...v", query, self.values.astype(jnp.float32)) * scale

  def take(self, ids):
    rows = self.values[ids].astype(jnp.float32)
    return rows * jnp.broadcast_to(self.scale[ids], rows.shape)


RNG = np.random.default_rng(0)
QUERY = jnp.asarray(RNG.normal(size=(2, 3, 4)), jnp.float32)
BIAS = jnp.asarray(RNG.normal(size=7), jnp.float32)
PLAIN = jnp.asarray(RNG.normal(size=(7, 4)), jnp.float32)
INT8 = Scaled(
  jnp.asarray(RNG.integers(-127, 128, (7, 4)), jnp.int8),
  jnp.asarray(RNG.uniform(0.001, 0.02, (7, 1)), jnp.float32),
)
IDS = jnp.asarray(RNG.integers(0, 7, (2, 3, 5)))


def matrix(table):
  return np.asarray(table.take(np.arange(7)) if isinstance(table, Scaled) else table, np.float64)


@pytest.mark.parametrize("table", [PLAIN, INT8], ids=["array", "int8"])
@pytest.mark.parametrize("bias", [None, BIAS], ids=["no-bias", "bias"])
def test_dense_and_at_equal_numpy(table, bias):
  logits = FactoredLogits(QUERY, table, bias if bias is None else jnp.asarray(bias))
  expected = np.float64(QUERY) @ matrix(table).T + (0 if bias is None else np.float64(bias))
  with jax.numpy_rank_promotion("allow"):
    np.testing.assert_allclose(logits.dense(), expected, rtol=1e-5, atol=1e-6)
    at = logits.at(IDS)
  np.testing.assert_allclose(at, np.take_along_axis(expected, IDS, -1), rtol=1e-5, atol=1e-6)
  assert logits.num_items == 7


def test_half_precision_accumulates_in_float32():
  logits = FactoredLogits(jnp.ones([1, 512], jnp.bfloat16), jnp.ones([2, 512], jnp.bfloat16))
  assert logits.dense().dtype == logits.at(jnp.array([[1]])).dtype == jnp.float32
  assert float(logits.dense()[0, 0]) == 512


def test_factored_logits_are_a_pytree():
  logits = FactoredLogits(QUERY, PLAIN)
  doubled = jax.tree.map(lambda x: 2 * x, logits)
  np.testing.assert_allclose(doubled.dense(), 4 * logits.dense(), rtol=1e-6)


def test_no_item_is_ever_an_index():
  assert PAD < 0
  assert MASK < 0
  assert PAD != MASK
