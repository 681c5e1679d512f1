"""A teacher kept in bytes: what losses read of it is what the live one says, as far as is coded."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax import losses, models
from kdjax.train import teacher_cache
from kdjax.train.teacher_cache import Coding
from kdjax.types import FactoredLogits

ITEMS, LENGTH, ROWS = 300, 6, 11


def rows():
  items = np.random.default_rng(0).integers(0, ITEMS, (ROWS, LENGTH)).astype(np.int32)
  return {
    "items": items,
    "segments": np.ones_like(items),
    "positions": np.broadcast_to(np.arange(LENGTH, dtype=np.int32), items.shape).copy(),
  }


@pytest.fixture(scope="module")
def teacher():
  model = models.make_sasrec(num_items=ITEMS, max_length=LENGTH, dim=16, num_layers=1)
  params = model.init(jax.random.key(3), rows())
  params = {**params, "item_embedding": jax.tree.map(lambda x: 8 * x, params["item_embedding"])}
  return model.apply, params, np.asarray(jax.jit(model.apply)(params, rows()).logits.dense())


def decoded(teacher, coding):
  coded = teacher_cache.encode_rows(*teacher[:2], rows(), coding, rows_per_call=4)
  assert coded.shape == (ROWS, coding.row_bytes(LENGTH))
  assert coded.dtype == np.uint8
  return teacher_cache.decode(coding, jnp.asarray(coded), LENGTH)


@pytest.mark.parametrize(
  ("values", "error"), [("float32", 2e-6), ("bfloat16", 0.03), ("int8", 0.03)]
)
def test_the_best_logits_and_their_mass(teacher, values, error):
  coding = Coding(ITEMS, 20, values, temperature=2.0)
  found, features = decoded(teacher, coding)
  expected = losses.top_k_targets(teacher[2], 20, temperature=2.0)
  np.testing.assert_array_equal(found.indices, expected.indices)
  np.testing.assert_allclose(found.log_normalizer, expected.log_normalizer, rtol=1e-6)
  np.testing.assert_allclose(found.values, expected.values, atol=error)
  mass, whole = (jax.nn.logsumexp(t.values, axis=-1) - t.log_normalizer for t in (found, expected))
  np.testing.assert_allclose(mass, whole, atol=2e-6)  # However coarse the values.
  assert features == {}


@pytest.mark.parametrize("values", ["float32", "bfloat16", "int8"])
def test_all_logits_give_the_exact_kl(teacher, values):
  """Where k covers the support, within the rounding of the values."""
  targets, _ = decoded(teacher, Coding(ITEMS, ITEMS, values))
  student = FactoredLogits(jnp.ones([ROWS, LENGTH, 2]), jnp.ones([ITEMS, 2]))
  found = losses.catalog_top_k_kl_loss(student, targets)
  expected = losses.kl_loss(student.dense(), teacher[2])
  np.testing.assert_allclose(found, expected, rtol=1e-5 if values == "float32" else 5e-3)


def test_impossible_items_stay_so(teacher):
  apply, params, _ = teacher

  def with_bias(params, batch, *, key=None):
    outputs = apply(params, batch, key=key)
    bias = jnp.where(jnp.arange(ITEMS) < 5, 0.0, -jnp.inf)
    return outputs._replace(logits=outputs.logits._replace(bias=bias))

  for values in ("float32", "bfloat16", "int8"):
    found, _ = decoded((with_bias, params), Coding(ITEMS, 9, values))
    assert np.isneginf(found.values[..., 5:]).all()
    probs = jnp.exp(found.values[..., :5] - found.log_normalizer[..., None])
    np.testing.assert_allclose(probs.sum(-1), 1.0, atol=1e-5)


def test_draws_are_the_teacher_in_expectation(teacher):
  """The statistical test of what is kept: over many seeds, the target is its distribution."""
  coding, number = Coding(ITEMS, 4, "float32", samples=6), 150
  total = np.zeros((ROWS, LENGTH, ITEMS))
  for seed in range(number):
    coded = teacher_cache.encode_rows(*teacher[:2], rows(), coding, seed=seed)
    targets, _ = teacher_cache.decode(coding, jnp.asarray(coded), LENGTH)
    assert targets.indices.shape == (ROWS, LENGTH, 10)
    places = np.indices((ROWS, LENGTH, 10))[:2]
    np.add.at(total, (*places, np.asarray(targets.indices)), np.asarray(targets.weights))
  p = np.asarray(jax.nn.softmax(teacher[2], axis=-1), np.float64)
  rest = 1 - np.sort(p, axis=-1)[..., -4:].sum(-1, keepdims=True)
  most = 5.5 * np.sqrt(p * rest / 6 / number) + 4 * rest / 6 / number
  assert np.all(np.abs(total / number - p) < most)


def test_draws_are_those_of_the_rows_whatever_the_shards(teacher):
  coding = Coding(ITEMS, 2, samples=3)
  options = {"rows_per_call": 4, "seed": 5}
  whole = teacher_cache.encode_rows(*teacher[:2], rows(), coding, **options)
  for part in (range(8), range(8, ROWS), range(3, 9)):
    found = teacher_cache.encode_rows(*teacher[:2], rows(), coding, rows=part, **options)
    np.testing.assert_array_equal(found, whole[list(part)])


def test_features_and_disk(teacher, tmp_path):
  coding = Coding(ITEMS, 3, features=(("query", (LENGTH, 16)),))
  args = (tmp_path / "cache", *teacher[:2], rows(), coding)
  options = {"about": {"of": "tests"}, "rows_per_shard": 4, "rows_per_call": 4}
  assert list(teacher_cache.write(*args, **options, part=(1, 2))) == [1]
  assert list(teacher_cache.write(*args, **options)) == [0, 2]
  assert list(teacher_cache.write(*args, **options)) == []
  found, kept = teacher_cache.read(tmp_path / "cache")
  assert found == coding
  assert kept.about["of"] == "tests"
  np.testing.assert_array_equal(kept, teacher_cache.encode_rows(*teacher[:2], rows(), coding))
  batch = {name: values[:3] for name, values in rows().items()}
  live = teacher[0](teacher[1], batch)
  outputs = teacher_cache.with_cache(coding)({}, batch | {teacher_cache.NAME: kept[:3]})
  np.testing.assert_allclose(
    outputs.features["query"], live.features["query"], rtol=1e-2, atol=1e-2
  )


def test_ids_take_the_smallest_integer():
  sizes = [Coding(n, 10).row_bytes(1) - 8 - 20 for n in (256, 257, 65_536, 65_537, 10**7)]
  assert sizes == [10, 20, 20, 40, 40]


@pytest.mark.parametrize(
  ("coding", "message"),
  [
    (Coding(ITEMS, 0), r"k must lie in \[1, 300\]"),
    (Coding(ITEMS, ITEMS, samples=2), "nothing is left to draw from"),
    (Coding(ITEMS + 1, 3), "the teacher has 300 classes, the coding 301"),
    (Coding(ITEMS, 3, features=(("hidden", (1,)),)), "no feature 'hidden'; it has"),
  ],
)
def test_what_cannot_be_kept_is_refused(teacher, coding, message):
  with pytest.raises(ValueError, match=message):
    teacher_cache.encode_rows(*teacher[:2], rows(), coding)
