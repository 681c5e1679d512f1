"""What is kept of a teacher over a catalogue: as of dense logits, unbiased, never a matrix."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax import losses
from kdjax.losses import blocks
from kdjax.types import FactoredLogits

ITEMS, TOKENS = 53, 21
BLOCKS = [None, 10, 53, 60]


@pytest.fixture
def teacher(monkeypatch):
  """Logits in factors with ties, and an item that is impossible."""
  monkeypatch.setattr(blocks, "_BLOCK", 640)  # Several blocks of tokens at these sizes.
  rng = np.random.default_rng(0)
  table = rng.normal(size=(ITEMS, 6)).astype(np.float32)
  table[40:44] = table[3]
  bias = rng.normal(size=ITEMS).astype(np.float32)
  bias[40:44] = bias[3]
  bias[7] = -np.inf
  return FactoredLogits(*map(jnp.asarray, (rng.normal(size=(TOKENS, 6)), table, bias)))


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("k", [1, 5, ITEMS])
def test_the_best_in_blocks_are_the_best(teacher, k, block):
  found = losses.catalog_top_k_targets(teacher, k, temperature=1.5, block=block)
  expected = losses.top_k_targets(teacher.dense(), k, temperature=1.5)
  np.testing.assert_allclose(found.log_normalizer, expected.log_normalizer, rtol=1e-5)
  possible = expected.values > -1e20
  np.testing.assert_allclose(found.values[possible], expected.values[possible], atol=2e-6)
  np.testing.assert_array_equal(found.indices[possible], expected.indices[possible])
  dense = losses.catalog_top_k_targets(teacher.dense(), k, temperature=1.5, block=block)
  np.testing.assert_array_equal(dense.indices, expected.indices)


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("keep", [0, 4])
def test_draws_are_the_teacher_in_expectation(teacher, keep, block):
  """Their mean over keys comes as near to it as chance lets it."""
  number, draws = 400, 8
  keys = jax.random.split(jax.random.key(1), number)

  def target(key):
    found = losses.catalog_sample_targets(key, teacher, draws, keep=keep, block=block)
    rows = jnp.arange(TOKENS)[:, None]
    return jnp.zeros((TOKENS, ITEMS)).at[rows, found.indices].add(found.weights)

  targets = jax.lax.map(target, keys)
  p = np.asarray(jax.nn.softmax(teacher.dense(), axis=-1))
  np.testing.assert_allclose(targets.sum(-1), 1.0, atol=1e-5)
  rest = 1 - np.sort(p, axis=-1)[:, ITEMS - keep :].sum(-1, keepdims=True)
  # At most the deviation of independent draws; and rare ones come one by one.
  most = 5 * np.sqrt(p * rest / draws / number) + 4 * rest / draws / number
  assert np.all(np.abs(np.asarray(targets.mean(0)) - p) < most)
  best = np.argsort(-p, axis=-1, kind="stable")[:, :keep]
  exact = np.take_along_axis(np.asarray(targets[0]), best, axis=-1)
  np.testing.assert_allclose(exact, np.take_along_axis(p, best, -1), rtol=1e-4)


def test_draws_give_the_gradient_of_kl_in_expectation(teacher):
  student = FactoredLogits(teacher.query[:, ::-1], teacher.table, None)

  def of_draws(key):
    targets = losses.catalog_sample_targets(key, teacher, 8, keep=3)
    return jax.grad(losses.catalog_sampled_cross_entropy_loss)(student, targets)

  found = jax.lax.map(of_draws, jax.random.split(jax.random.key(2), 300))
  expected = jax.grad(losses.catalog_kl_loss)(student, teacher)
  for of_keys, exact in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
    errors = np.asarray(of_keys.std(0)) / np.sqrt(300) + 1e-6
    assert np.max(np.abs(np.asarray(of_keys.mean(0)) - np.asarray(exact)) / errors) < 5.0


def test_nothing_left_to_draw_weighs_nothing():
  logits = jnp.array([[0.0, -jnp.inf, -jnp.inf]])
  found = losses.catalog_sample_targets(jax.random.key(0), logits, 2, keep=1)
  assert found.weights.tolist() == [[1.0, 0.0, 0.0]]
  assert int(found.indices.max()) < 3


@pytest.mark.parametrize(
  "find",
  [
    lambda teacher: losses.catalog_top_k_targets(teacher, 8),
    lambda teacher: losses.catalog_sample_targets(jax.random.key(0), teacher, 8, keep=8),
  ],
)
def test_no_array_of_tokens_times_items(find):
  tokens, items = 2048, 20_000
  shapes = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((tokens, 16), (items, 16))]
  compiled = jax.jit(lambda q, t: find(FactoredLogits(q, t))).lower(*shapes).compile()
  assert compiled.memory_analysis().temp_size_in_bytes < tokens * items * 4 / 4


@pytest.mark.parametrize(
  ("call", "message"),
  [
    (lambda t: losses.catalog_top_k_targets(t, 0), r"k must lie in \[1, 53\]"),
    (lambda t: losses.catalog_top_k_targets(t, 2, temperature=0), "temperature"),
    (lambda t: losses.catalog_sample_targets(jax.random.key(0), t, 0), "num_samples"),
    (lambda t: losses.catalog_sample_targets(jax.random.key(0), t, 1, keep=53), "keep"),
  ],
)
def test_what_cannot_be_is_refused(teacher, call, message):
  with pytest.raises(ValueError, match=message):
    call(teacher)


def test_draws_from_millions_of_items_are_even():
  """Their shares are few steps of a float32 below 1."""
  items = 3 * 2**20
  teacher = FactoredLogits(jnp.zeros([8, 1]), jnp.zeros([items, 1]))
  found = losses.catalog_sample_targets(jax.random.key(0), teacher, 1024)
  drawn = np.asarray(found.indices).reshape(-1)
  counts = np.bincount(drawn % 3, minlength=3)
  expected = drawn.size / 3
  assert np.sum((counts - expected) ** 2) / expected < 18.4  # 2 degrees of freedom: p > 1e-4.
  places = [0.1, 0.5, 0.9]
  np.testing.assert_allclose(np.quantile(drawn / items, places), places, atol=0.01)
