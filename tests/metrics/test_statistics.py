"""Bootstrap and sign-flip test against scipy and exact enumeration."""

import itertools

import numpy as np
import pytest
import scipy.stats

from kdjax import metrics


@pytest.mark.parametrize("distinct", [False, True], ids=["counted", "drawn"])
def test_the_interval_agrees_with_scipy(distinct):
  rng = np.random.default_rng(0)
  values = rng.exponential(size=400) if distinct else (rng.random(400) < 0.2).astype(float)
  got = metrics.bootstrap_interval(values, num_resamples=20_000)
  expected = scipy.stats.bootstrap(
    (values,), np.mean, n_resamples=20_000, method="percentile", rng=1
  ).confidence_interval
  assert got.mean == pytest.approx(values.mean())
  width = expected.high - expected.low
  assert abs(got.low - expected.low) < 0.03 * width
  assert abs(got.high - expected.high) < 0.03 * width


def test_intervals_nest_repeat_and_keep_nan():
  values = np.random.default_rng(1).normal(size=100)
  wide = metrics.bootstrap_interval(values, confidence=0.99)
  slim = metrics.bootstrap_interval(values, confidence=0.5)
  assert wide.low < slim.low < slim.mean < slim.high < wide.high
  assert metrics.bootstrap_interval(values) == metrics.bootstrap_interval(values, seed=0)
  assert metrics.bootstrap_interval(values) != metrics.bootstrap_interval(values, seed=1)
  assert np.isnan(metrics.bootstrap_interval(np.array([1.0, np.nan])).low)
  assert np.isnan(metrics.paired_test(np.array([1.0, np.nan]), np.zeros(2)).p_value)


def test_the_p_value_is_that_of_all_sign_flips():
  rng = np.random.default_rng(2)
  a, b = rng.normal(0.4, 1, 12), rng.normal(size=12)
  flips = np.array(list(itertools.product([-1, 1], repeat=12)))
  exact = np.mean(np.abs(flips @ (a - b)) >= abs((a - b).sum()) - 1e-12)
  got = metrics.paired_test(a, b, num_resamples=50_000)
  assert got.difference == pytest.approx((a - b).mean())
  assert got.p_value == pytest.approx(exact, abs=0.01)
  theirs = scipy.stats.permutation_test(
    (a, b), lambda x, y: np.mean(x - y), permutation_type="samples", n_resamples=np.inf
  )
  assert exact == pytest.approx(theirs.pvalue, abs=1e-9)


def test_counted_and_drawn_flips_follow_the_t_test_on_many_users():
  rng = np.random.default_rng(3)
  counted = (rng.random(3000) < 0.22).astype(float), (rng.random(3000) < 0.2).astype(float)
  drawn = rng.normal(0.03, 1, 3000), rng.normal(size=3000)
  for a, b in (counted, drawn):
    got = metrics.paired_test(a, b, num_resamples=20_000)
    assert got.p_value == pytest.approx(scipy.stats.ttest_rel(a, b).pvalue, abs=0.02)
    half = 1.96 * scipy.stats.sem(a - b)
    assert got.low == pytest.approx(got.difference - half, abs=0.1 * half)
    assert got.high == pytest.approx(got.difference + half, abs=0.1 * half)


def test_equal_models_do_not_differ_and_opposite_ones_do():
  values = np.random.default_rng(4).random(50)
  assert metrics.paired_test(values, values) == (0.0, 0.0, 0.0, 1.0)
  better = metrics.paired_test(values + 1, values, num_resamples=999)
  assert better.p_value == pytest.approx(1 / 1000)
  worse = metrics.paired_test(values, values + 1, num_resamples=999)
  assert worse.difference == pytest.approx(-1)
  assert worse.p_value == better.p_value


def test_bad_options_are_refused():
  with pytest.raises(ValueError, match="one value a user"):
    metrics.bootstrap_interval(np.zeros(0))
  with pytest.raises(ValueError, match="one value a user"):
    metrics.bootstrap_interval(np.zeros((2, 2)))
  with pytest.raises(ValueError, match="confidence"):
    metrics.bootstrap_interval(np.zeros(2), confidence=95)
  with pytest.raises(ValueError, match="num_resamples"):
    metrics.bootstrap_interval(np.zeros(2), num_resamples=0)
  with pytest.raises(ValueError, match="a has shape"):
    metrics.paired_test(np.zeros(2), np.zeros(3))
