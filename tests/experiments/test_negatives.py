"""Negatives drawn on the device, inside the compiled step."""

import jax
import jax.numpy as jnp
import numpy as np

from experiments import negatives, problems
from experiments.config import DataConfig, FitConfig

COUNTS = np.array([0, 1, 3, 10, 0, 100, 30, 7])


def test_popularity_is_the_power_of_counts():
  items = np.repeat(np.arange(8), COUNTS)
  expected = (COUNTS + 1.0) ** 0.75
  found = np.exp(negatives.popularity(items, 8))
  np.testing.assert_allclose(found, expected / expected.sum(), rtol=1e-6)


def test_draws_follow_the_distribution_whatever_compiles_them():
  log_q = negatives.popularity(np.repeat(np.arange(8), COUNTS), 8)
  sample = negatives.sampler(log_q)
  drawn = jax.jit(lambda key: sample(key, (100, 400)))(jax.random.key(0))
  assert (drawn.shape, drawn.dtype) == ((100, 400), jnp.int32)
  np.testing.assert_array_equal(drawn, sample(jax.random.key(0), (100, 400)))
  expected = np.exp(log_q) * drawn.size
  counts = np.bincount(np.asarray(drawn).reshape(-1), minlength=8)
  assert np.sum((counts - expected) ** 2 / expected) < 29.9  # Chi-square of 7 degrees: p > 1e-4.


def test_a_batch_gets_its_own_in_the_compiled_step():
  """Fresh with every key, as many as asked for, and no host is called."""
  data = DataConfig(synthetic_users=30, synthetic_items=20, synthetic_length=8, max_length=8)
  task = problems.make_task(data, "mf")
  augment = task.augment(FitConfig(num_negatives=5))
  assert augment is not None
  batch = {name: jnp.asarray(values[:6]) for name, values in task.arrays.items()}
  draw = jax.jit(augment)
  first, second = (draw(batch, jax.random.key(n))["candidates"] for n in (0, 1))
  assert first.shape == (6, 6)
  np.testing.assert_array_equal(first[:, 0], batch["items"])
  assert (np.asarray(first[:, 1:]) != np.asarray(second[:, 1:])).any()
  assert "callback" not in draw.lower(batch, jax.random.key(0)).compile().as_text()
