"""What the catalogue losses promise beyond the shared table: blocks, memory, dtypes, devices."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax import losses
from kdjax.losses import blocks
from kdjax.types import FactoredLogits


class Int8Table(NamedTuple):
  """A teacher's table that is not an array."""

  values: jax.Array
  scale: jax.Array

  @property
  def shape(self):
    return self.values.shape

  def rdot(self, query):
    return (query @ self.values.astype(jnp.float32).T) * self.scale[:, 0][None, :]

  def take(self, ids):
    return self.values[ids].astype(jnp.float32) * self.scale[ids]


def jitted_grad(fn):
  return jax.jit(jax.grad(fn))


def model(tokens, items, width, seed, *, bias=True, dtype=np.float32):
  rng = np.random.default_rng(seed)
  arrays = [rng.normal(size=shape) for shape in ((tokens, width), (items, width), (items,))]
  query, table, bias_values = (jnp.asarray(a, dtype) for a in arrays)
  return FactoredLogits(query, table, bias_values if bias else None)


def full(logits):
  scores = np.float64(logits.query) @ np.float64(logits.table).T
  return scores if logits.bias is None else scores + np.float64(logits.bias)


def kl_pair(student, teacher, **options):
  """(loss, gradient) of the blocked and of the plain KL."""
  options.setdefault("temperature", 2.0)
  block = options.pop("block", None)
  blocked = jax.jit(
    jax.value_and_grad(lambda s: losses.catalog_kl_loss(s, teacher, block=block, **options))
  )(student)

  def plain_loss(s):
    bias = 0 if s.bias is None else s.bias[None]
    return losses.kl_loss(
      s.query @ s.table.T + bias, jnp.asarray(full(teacher), jnp.float32), **options
    )

  return blocked, jax.jit(jax.value_and_grad(plain_loss))(student)


def assert_close(actual, expected, rtol=2e-5, atol=1e-6):
  leaves = zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True)
  for a, e in leaves:
    np.testing.assert_allclose(a, e, rtol=rtol, atol=atol)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
  ("tokens", "items", "block"), [(150, 97, 20), (150, 97, 97), (1, 5, 2), (67, 130, None)]
)
def test_ragged_blocks_equal_the_plain_loss(tokens, items, block, bias, monkeypatch):
  monkeypatch.setattr(blocks, "_BLOCK", 640)  # Several blocks of tokens at these sizes.
  student, teacher = model(tokens, items, 8, 0, bias=bias), model(tokens, items, 12, 1)
  where = jnp.asarray(np.random.default_rng(2).random(tokens) < 0.7).at[0].set(True)
  assert_close(*kl_pair(student, teacher, block=block, where=where))


def test_blocks_fit_the_cache_and_cover_everything():
  for tokens, items in [(1, 1), (16384, 3416), (1024, 100_000), (7, 10**6), (2000, 24_000)]:
    chosen = blocks.choose_blocks(tokens, items, None)
    assert chosen.tokens * chosen.items <= 1.1 * blocks._BLOCK
    steps = -(-tokens // chosen.tokens)
    assert steps * chosen.tokens - tokens < 8 * steps + chosen.tokens
    assert 1 <= chosen.items <= items
  assert blocks.choose_blocks(16384, 3416, None).items == 3416


def test_no_array_of_tokens_times_items_is_ever_built():
  tokens, items = 2048, 20_000
  shapes = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((tokens, 16), (items, 16), (tokens, 32))]
  teacher_table = jax.ShapeDtypeStruct((items, 32), jnp.float32)

  def loss(query, table, teacher_query, teacher_table):
    student, teacher = FactoredLogits(query, table), FactoredLogits(teacher_query, teacher_table)
    return losses.catalog_kl_loss(student, teacher)

  compiled = jax.jit(jax.value_and_grad(loss, (0, 1))).lower(*shapes, teacher_table).compile()
  assert compiled.memory_analysis().temp_size_in_bytes < tokens * items * 4 / 4


def test_other_reductions_take_gradients_on_the_way_back():
  student, teacher = model(30, 41, 8, 0), model(30, 41, 12, 1)
  weights = jnp.linspace(-1, 2, 30)

  def weighted(values, *, where):
    return jnp.sum(values * weights)

  assert_close(*kl_pair(student, teacher, block=10, reduce_fn=weighted))
  labels = jnp.arange(30)
  blocked = jitted_grad(
    lambda s: losses.catalog_cross_entropy_loss(s, labels, reduce_fn=weighted, block=10)
  )(student)
  plain = jitted_grad(
    lambda s: losses.cross_entropy_loss(
      s.query @ s.table.T + s.bias[None], labels, reduce_fn=weighted
    )
  )(student)
  assert_close(blocked, plain)


def test_leading_axes_are_kept():
  flat = model(6, 11, 4, 0)
  student = flat._replace(query=flat.query.reshape(2, 3, 4))
  labels = jnp.arange(6).reshape(2, 3)
  values = losses.catalog_cross_entropy_loss(student, labels, reduce_fn=None)
  assert values.shape == (2, 3)
  expected = losses.catalog_cross_entropy_loss(flat, labels.reshape(-1), reduce_fn=None)
  np.testing.assert_allclose(values.reshape(-1), expected, rtol=1e-6)


@pytest.mark.parametrize("block", [None, 9])
def test_int8_teacher_equals_its_dequantized_table(block):
  student, plain = model(20, 31, 4, 0), model(20, 31, 6, 1)
  scale = jnp.max(jnp.abs(plain.table), axis=1, keepdims=True) / 127
  table = Int8Table(jnp.round(plain.table / scale).astype(jnp.int8), scale)
  dense = plain._replace(table=table.take(jnp.arange(31)))
  fn = jax.jit(jax.value_and_grad(lambda s, t: losses.catalog_kl_loss(s, t, block=block)))
  assert_close(fn(student, plain._replace(table=table)), fn(student, dense))


def test_int8_student_sends_gradients_to_its_query():
  plain = model(20, 31, 6, 1, bias=False)
  scale = jnp.max(jnp.abs(plain.table), axis=1, keepdims=True) / 127
  table = Int8Table(jnp.round(plain.table / scale).astype(jnp.int8), scale)
  labels = jnp.arange(20)

  def loss(query, table):
    return losses.catalog_cross_entropy_loss(FactoredLogits(query, table), labels)

  dense = jitted_grad(loss)(plain.query, table.take(jnp.arange(31)))
  np.testing.assert_allclose(jitted_grad(loss)(plain.query, table), dense, rtol=1e-5, atol=1e-7)


def test_bfloat16_inputs_multiply_in_bfloat16():
  student = model(40, 64, 16, 0, dtype=jnp.bfloat16)
  labels = jnp.arange(40)
  fn = jax.jit(jax.value_and_grad(lambda s: losses.catalog_cross_entropy_loss(s, labels)))
  text = fn.lower(student).as_text()
  products = [line for line in text.splitlines() if "dot_general" in line]
  assert len(products) == 3
  assert all("bf16" in line and "-> tensor<" in line and "xf32>" in line for line in products)
  value, grads = fn(student)
  exact = fn(jax.tree.map(lambda x: x.astype(jnp.float32), student))
  np.testing.assert_allclose(value, exact[0], rtol=1e-4)
  for half, whole in zip(grads, exact[1], strict=True):
    assert half.dtype == jnp.bfloat16
    np.testing.assert_allclose(half, whole, atol=0.02 * float(jnp.max(jnp.abs(whole))))


def test_impossible_items_get_no_probability_and_no_gradient():
  student, teacher = model(10, 12, 4, 0), model(10, 12, 4, 1)
  gone = jnp.arange(12) >= 9
  drop = lambda m: m._replace(bias=jnp.where(gone, -jnp.inf, m.bias))  # noqa: E731
  cut = lambda m: m._replace(table=m.table[:9], bias=m.bias[:9])  # noqa: E731
  fn = jax.jit(jax.value_and_grad(losses.catalog_kl_loss))
  value, grads = fn(drop(student), drop(teacher))
  expected, cut_grads = fn(cut(student), cut(teacher))
  np.testing.assert_allclose(value, expected, rtol=1e-5)
  np.testing.assert_allclose(grads.table[:9], cut_grads.table, rtol=1e-4, atol=1e-7)
  assert np.all(np.asarray(grads.table[9:]) == 0)


@pytest.mark.parametrize("label", [-1, 12])
def test_a_label_out_of_range_that_counts_is_nan(label):
  student, labels = model(10, 12, 4, 0), jnp.arange(10).at[3].set(label)
  assert jnp.isnan(losses.catalog_cross_entropy_loss(student, labels))
  values = losses.catalog_cross_entropy_loss(student, labels, reduce_fn=None)
  np.testing.assert_array_equal(jnp.isnan(values), jnp.arange(10) == 3)


def test_unequal_catalogues_are_refused():
  with pytest.raises(ValueError, match="differ in shape of logits"):
    losses.catalog_kl_loss(model(10, 12, 4, 0), model(10, 13, 4, 0))


@pytest.mark.parametrize("block", [0, -3])
def test_block_must_be_positive(block):
  with pytest.raises(ValueError, match="block must be positive"):
    losses.catalog_cross_entropy_loss(model(3, 4, 2, 0), jnp.arange(3), block=block)


def test_sharded_batch_equals_one_device(monkeypatch):
  monkeypatch.setattr(blocks, "_BLOCK", 64 * 50)
  student, teacher = model(512, 50, 8, 0), model(512, 50, 12, 1)
  mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
  rows = jax.NamedSharding(mesh, jax.P("data"))
  whole = jax.NamedSharding(mesh, jax.P())

  def place(m):
    return FactoredLogits(*(jax.device_put(x, s) for x, s in zip(m, (rows, whole, whole))))  # noqa: B905

  fn = jax.jit(jax.value_and_grad(losses.catalog_kl_loss))
  assert_close(fn(place(student), place(teacher)), fn(student, teacher), rtol=1e-4)
