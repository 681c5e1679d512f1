import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax.composed import Composition
from kdjax.models import fold_item_features, make_sasrec, move_items
from kdjax.types import PAD

KEY = jax.random.key(0)


def unpacked(items):
  items = jnp.asarray(items)[None]
  return {
    "items": items,
    "segments": jnp.ones_like(items),
    "positions": jnp.arange(items.shape[1])[None],
  }


def test_packed_equals_each_user_alone_and_padding_changes_nothing():
  users = [[3, 1, 4], [1, 5, 9, 2], [6]]
  empty = 2
  batch = {
    "items": jnp.array([[i for items in users for i in items] + [PAD] * empty]),
    "segments": jnp.array([[1] * 3 + [2] * 4 + [3] + [0] * empty]),
    "positions": jnp.array([[0, 1, 2, 0, 1, 2, 3, 0] + [0] * empty]),
  }
  model = make_sasrec(num_items=10, max_length=6, dim=8, num_heads=2)
  params = model.init(KEY, batch)
  dense = jax.jit(lambda batch: model.apply(params, batch).logits.dense()[0])
  packed = dense(batch)
  start = 0
  for items in users:
    alone = dense(unpacked(items))
    np.testing.assert_allclose(packed[start : start + len(items)], alone, atol=1e-5)
    start += len(items)
  assert np.isfinite(packed).all()


def test_a_key_means_dropout():
  batch = unpacked([1, 2, 3])
  model = make_sasrec(num_items=5, max_length=3, dim=8, dropout=0.5)
  params = model.init(KEY, batch)
  query = jax.jit(lambda key: model.apply(params, batch, key=key).logits.query)
  np.testing.assert_array_equal(query(None), query(None))
  np.testing.assert_array_equal(query(KEY), query(KEY))
  assert not np.array_equal(query(KEY), query(jax.random.key(1)))
  assert not np.array_equal(query(KEY), query(None))


def test_folded_features_change_nothing():
  batch, keys = unpacked([1, 2, 3, -1]), jax.random.split(KEY, 3)
  sizes = {"num_items": 5, "max_length": 4, "dim": 8, "feature_dims": (3, 2), "dropout": 0.0}
  model = make_sasrec(**sizes)
  params = model.init(keys[0], batch)
  for m, key in enumerate(keys[1:]):
    table = params[f"item_features_{m}"]
    table["embedding"] = jax.random.normal(key, table["embedding"].shape)
  folded, plain = fold_item_features(params, sizes)
  assert folded["item_embedding"]["embedding"].shape == (5, 8)
  small = make_sasrec(**plain)
  assert jax.tree.structure(folded) == jax.tree.structure(small.init(KEY, batch))
  expected, found = (
    m.apply(p, batch).logits.dense() for m, p in ((model, params), (small, folded))
  )
  np.testing.assert_allclose(found, expected, atol=1e-6)
  with pytest.raises(ValueError, match="no item features"):
    fold_item_features(folded, plain)


def test_composed_items_fold_into_a_table_and_have_no_rows_to_move():
  composition = Composition("quotient_remainder", 3)
  sizes = {"num_items": 10, "max_length": 6, "dim": 8, "composition": composition}
  batch = unpacked([3, 1, 4])
  params = make_sasrec(**sizes).init(KEY, batch)
  with pytest.raises(ValueError, match="no rows of their own to move"):
    move_items(params, sizes, rows=np.array([1, 0]))
  sizes["feature_dims"] = (4,)
  model = make_sasrec(**sizes)
  params = model.init(KEY, batch)
  folded, plain = fold_item_features(params, sizes)
  assert "composition" not in plain
  np.testing.assert_allclose(
    make_sasrec(**plain).apply(folded, batch).logits.dense(),
    model.apply(params, batch).logits.dense(),
    atol=1e-5,
  )
