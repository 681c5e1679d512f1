"""Negatives drawn on the device, inside the compiled step."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

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


@pytest.mark.parametrize("num_items", [1, 1000, 10**6, 10**7])
def test_every_one_of_millions_of_items_can_be_drawn(num_items):
  counts = 1e8 / np.arange(1, num_items + 1)  # As often as Zipf has it.
  mass = (counts + 1) ** 0.75
  mass /= mass.sum()
  log_q = np.log(mass).astype(np.float32)
  ends = np.concatenate([[0], negatives.bounds(log_q).astype(np.float64), [2**32]])
  drawn = np.diff(ends) / 2**32
  assert drawn.min() > 0
  assert np.abs(drawn - mass).sum() / 2 < 2e-3
  few = negatives.sampler(log_q)(jax.random.key(0), (4096,))
  assert int(few.min()) >= 0
  assert int(few.max()) < num_items
  # Half of the mass lies before the median, and half of the draws.
  median = np.searchsorted(np.cumsum(mass), 0.5)
  share = float(np.mean(np.asarray(few) <= median)) if num_items > 1 else 1.0
  np.testing.assert_allclose(share, mass[: median + 1].sum(), atol=0.04)
