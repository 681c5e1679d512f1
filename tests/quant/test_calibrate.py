"""Statistics of ranges: merging is exact, and scales are those of their definitions."""

import functools

import hypothesis
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax.quant import (
  absmax,
  dequantize,
  entropy_scale,
  histogram,
  mse_scale,
  percentile_scale,
  quantize,
  search_scale,
)

RNG = np.random.default_rng(0)
batches = st.lists(
  hnp.arrays(np.float32, 12, elements=st.floats(-(2.0**40), 2.0**40, width=32)),
  min_size=2,
  max_size=4,
)


def normal(*shape):
  return jnp.asarray(RNG.normal(size=shape), jnp.float32)


@hypothesis.settings(deadline=None, max_examples=30)
@hypothesis.given(batches)
@hypothesis.example([np.zeros(12, np.float32), np.full(12, 0.25, np.float32)])
def test_histograms_merge_exactly_in_any_order(arrays):
  parts = [histogram(jnp.asarray(x)) for x in arrays]
  whole = histogram(jnp.asarray(np.concatenate(arrays)))
  for order in (parts, parts[::-1]):
    merged = functools.reduce(lambda a, b: a.merge(b), order)
    np.testing.assert_array_equal(merged.counts, whole.counts)
    assert merged.exponent == whole.exponent
  largest = max(float(np.abs(x).max()) for x in arrays)
  assert largest <= float(whole.limit()) <= max(largest, 1e-30) + float(whole.width())


def test_a_histogram_counts_magnitudes():
  x = np.asarray(normal(5000))
  seen = jax.jit(histogram)(jnp.asarray(x))
  edges = np.arange(2049) * float(seen.width())
  np.testing.assert_array_equal(seen.counts, np.histogram(np.abs(x), edges)[0])
  assert int(seen.exponent) == 2


# Shares that floats hold exactly: NumPy rounds the others up to one entry more.
@pytest.mark.parametrize("percentile", [50.0, 87.5, 99.21875, 100.0])
def test_percentiles(percentile):
  x = normal(20000)
  seen = histogram(x[:9000]).merge(histogram(x[9000:]))
  expected = np.percentile(np.abs(x), percentile, method="inverted_cdf")
  found = float(percentile_scale(seen, percentile=percentile)) * 127
  assert expected <= found <= expected + float(seen.width()) * 1.001


@pytest.mark.parametrize("bits", [8, 4])
def test_mse_scale_is_the_best_of_a_search(bits):
  x = jnp.asarray(RNG.standard_t(4, size=20000), jnp.float32)
  seen = histogram(x)

  def error(scale):
    return float(jnp.mean((dequantize(quantize(x, axis=0, scale=scale, bits=bits)) - x) ** 2))

  found = error(mse_scale(seen, bits=bits))
  levels = 127 if bits == 8 else 7
  tried = [error(jnp.float32(end / levels)) for end in np.linspace(0.5, float(seen.limit()), 200)]
  assert found <= min(tried) * 1.01
  assert found < 0.95 * error(absmax(x, axis=None).scale(bits=bits)[0])


def entropy_oracle(counts, levels):
  """For each number of bins kept, the divergence, with loops."""
  best = (np.inf, None)
  for end in range(levels + 1, len(counts) + 1):
    if not counts[end - 1 :].any():
      break
    p = counts[:end].astype(float)
    p[-1] += counts[end:].sum()
    q = np.zeros(end)
    pieces = np.arange(end) * (levels + 1) // end
    for piece in range(levels + 1):
      inside = (pieces == piece) & (counts[:end] > 0)
      if inside.any():
        q[inside] = counts[:end][pieces == piece].sum() / inside.sum()
    p, q = p / p.sum(), q / max(q.sum(), 1)
    real = p > 0
    divergence = np.sum(p[real] * (np.log(p[real]) - np.log(np.maximum(q[real], 1e-9))))
    best = min(best, (divergence, end))
  return best


@pytest.mark.parametrize("bits", [8, 4])
def test_entropy_scale_follows_its_definition(bits):
  x = jnp.concatenate([normal(30000), jnp.array([9.0, 14.0])])
  seen = histogram(x)
  levels = 127 if bits == 8 else 7
  counts = np.asarray(seen.counts)
  _, end = entropy_oracle(counts, levels)
  np.testing.assert_allclose(entropy_scale(seen, bits=bits) * levels, end * seen.width(), rtol=1e-6)
  # Two outliers do not stretch the range.
  assert float(entropy_scale(seen, bits=bits)) * levels < 7


@pytest.mark.parametrize(("axis", "group"), [(0, None), (1, 4), (None, None)])
def test_searched_scales_are_never_worse(axis, group):
  x = jnp.asarray(RNG.standard_t(3, size=(16, 8)), jnp.float32)
  options = {"axis": axis, "bits": 4, "group": group}
  scale = jax.jit(lambda x: search_scale(x, **options))(x)
  widest = quantize(x, **options)
  assert scale.shape == widest.scale.shape
  error = lambda q: (np.asarray(dequantize(q)) - np.asarray(x)) ** 2  # noqa: E731
  better, worse = error(quantize(x, scale=scale, **options)), error(widest)
  assert better.sum() < 0.99 * worse.sum()
  if axis == 0:
    assert np.all(better.sum(0) <= worse.sum(0) * (1 + 1e-6))


def test_nothing_but_zeros_has_a_scale():
  seen = histogram(jnp.zeros(8)).merge(histogram(jnp.zeros(3)))
  for scale in (percentile_scale(seen), mse_scale(seen), entropy_scale(seen)):
    assert float(scale) > 0
    assert np.isfinite(float(scale))
  assert int(seen.counts.sum()) == 11


def test_bad_settings_are_refused():
  seen = histogram(jnp.ones(3))
  for percentile in (0.0, 101.0):
    with pytest.raises(ValueError, match="percentile"):
      percentile_scale(seen, percentile=percentile)
  with pytest.raises(ValueError, match="bits"):
    mse_scale(seen, bits=3)
  with pytest.raises(ValueError, match="steps"):
    search_scale(jnp.ones(3), axis=0, steps=0)
