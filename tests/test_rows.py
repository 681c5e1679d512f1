"""Rows of tables: listed once, taken out, standing in, written back."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax import rows
from kdjax.types import MASK, PAD, FactoredLogits

TABLE = jax.random.normal(jax.random.key(0), (9, 3))
PARAMS = {"item": {"embedding": TABLE, "bias": jnp.arange(9.0)}, "out": jnp.ones([2])}


@pytest.mark.parametrize("shape", [(6,), (2, 3), (40,)])
def test_unique_ids_are_those_of_numpy_then_past_the_table(shape):
  ids = np.random.default_rng(1).integers(-2, 9, shape)
  found = np.asarray(rows.unique_ids(jnp.asarray(ids), 9))
  real = np.unique(np.maximum(ids, 0))
  assert len(found) == min(ids.size, 9)
  np.testing.assert_array_equal(found[: len(real)], real)
  assert (found[len(real) :] >= 9).all()
  assert len(set(found.tolist())) == len(found)


def test_all_rows_at_once():
  ids = jnp.array([*range(9), PAD, MASK])
  assert rows.unique_ids(ids, 9).tolist() == list(range(9))


def test_rows_stand_where_the_table_stood():
  ids = {("item", "embedding"): rows.unique_ids(jnp.array([7, 2, 7, PAD]), 9)}
  gathered = rows.gather_rows(PARAMS, ids)
  assert gathered["item"]["embedding"].shape == (4, 3)
  assert gathered["out"] is PARAMS["out"]
  table = rows.stand_in(gathered, PARAMS, ids)["item"]["embedding"]
  assert (table.shape, table.ndim, table.dtype) == (TABLE.shape, 2, TABLE.dtype)
  at = jnp.array([[2, 7], [7, 7]])
  np.testing.assert_array_equal(table.take(at), TABLE[at])
  np.testing.assert_array_equal(table[at], TABLE[at])
  np.testing.assert_array_equal(table.replace(jnp.sin(table.values)).take(at), jnp.sin(TABLE)[at])
  assert table.astype(jnp.bfloat16).take(at).dtype == jnp.bfloat16
  query = jnp.ones([2, 3])
  np.testing.assert_allclose(
    FactoredLogits(query, table).at(at), FactoredLogits(query, TABLE).at(at), rtol=1e-6
  )


def test_a_row_that_was_not_gathered_is_visible():
  table = rows.GatheredRows(jnp.array([2, 9]), TABLE[jnp.array([2, 8])], 9)
  found = np.asarray(table.take(jnp.array([2, 3, 8])))
  assert np.isfinite(found[0]).all()
  assert np.isnan(found[1:]).all()


def test_the_whole_catalogue_is_refused():
  table = rows.GatheredRows(jnp.array([2]), TABLE[2:3], 9)
  for whole in (FactoredLogits(jnp.ones([2, 3]), table).dense, lambda: jnp.asarray(table)):
    with pytest.raises(ValueError, match="use a sampled loss"):
      whole()


def test_what_is_put_back_is_what_was_changed():
  ids = {path: rows.unique_ids(jnp.array([3, 8, 3]), 9) for path in
         (("item", "embedding"), ("item", "bias"))}  # fmt: skip
  gathered = jax.tree.map(lambda x: x + 1, rows.gather_rows(PARAMS, ids))
  found = rows.put_rows(PARAMS, gathered, ids)
  touched = np.isin(np.arange(9), [3, 8])
  np.testing.assert_array_equal(found["item"]["embedding"], TABLE + touched[:, None])
  np.testing.assert_array_equal(found["item"]["bias"], np.arange(9) + touched)
  np.testing.assert_array_equal(found["out"], PARAMS["out"] + 1)


def test_a_path_that_is_no_table_is_named():
  with pytest.raises(ValueError, match="user/embedding"):
    rows.gather_rows(PARAMS, {("user", "embedding"): jnp.array([0])})
