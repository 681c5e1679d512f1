"""With what certainty: intervals of a mean over users, and a paired test of two models."""

from typing import NamedTuple

import numpy as np

_CHUNK = 1 << 22  # Draws held at once.


class Interval(NamedTuple):
  """A mean with a confidence interval."""

  mean: float
  low: float
  high: float


class Comparison(NamedTuple):
  """Mean of `a - b` over users, its confidence interval, and the p-value of no difference."""

  difference: float
  low: float
  high: float
  p_value: float


def bootstrap_interval(
  values: np.ndarray, *, confidence: float = 0.95, num_resamples: int = 2000, seed: int = 0
) -> Interval:
  r"""Percentile bootstrap interval of the mean over users.

  Users are drawn with replacement, as many as there are, `num_resamples` times; the interval
  lies between the (1 - confidence) / 2 and (1 + confidence) / 2 quantiles of the means.

  Args:
    values: float `[N]`, one a user, such as `per_user(ranks)["ndcg@10"]`.
    confidence: in (0, 1).
    num_resamples: how many resamples.
    seed: of the draws; the same seed gives the same interval.

  Returns:
    `Interval(mean, low, high)`; NaN values give NaN.

  Raises:
    ValueError: if there are no values, or an option is out of range.

  Example:
    >>> bootstrap_interval(np.full(10, 0.25))
    Interval(mean=0.25, low=0.25, high=0.25)

  Reference:
    Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13.
  """
  values = _check(values, confidence, num_resamples)
  means = _resampled_means(values, num_resamples, np.random.default_rng(seed))
  low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
  return Interval(float(values.mean()), float(low), float(high))


def paired_test(
  a: np.ndarray,
  b: np.ndarray,
  *,
  confidence: float = 0.95,
  num_resamples: int = 2000,
  seed: int = 0,
) -> Comparison:
  r"""Whether model a differs from model b on the same users.

  The interval is that of `bootstrap_interval` over the differences $d_u = a_u - b_u$. The
  two-sided p-value is that of the sign-flip test: if the models were exchangeable, every $d_u$
  would be as likely to have the other sign, so

  $$p = \frac{1 + \#\{ |\textstyle\sum_u \pm d_u| \ge |\sum_u d_u| \}}{1 + \text{num\_resamples}}$$

  which is never below 1 / (1 + num_resamples).

  Args:
    a: float `[N]`, one a user.
    b: float `[N]`, of the same users in the same order.
    confidence: in (0, 1).
    num_resamples: how many resamples, and how many flips.
    seed: of the draws.

  Returns:
    `Comparison(difference, low, high, p_value)`.

  Raises:
    ValueError: if the shapes differ, there are no values, or an option is out of range.

  Example:
    >>> paired_test(np.ones(20), np.zeros(20)).p_value < 0.001
    True

  Reference:
    Smucker, Allan and Carterette, A Comparison of Statistical Significance Tests for Information
    Retrieval Evaluation, CIKM 2007.
  """
  if np.shape(a) != np.shape(b):
    raise ValueError(f"a has shape {np.shape(a)} but b has {np.shape(b)}")
  differences = _check(np.asarray(a, np.float64) - np.asarray(b, np.float64), 0.5, 1)
  interval = bootstrap_interval(
    differences, confidence=confidence, num_resamples=num_resamples, seed=seed
  )
  sums = _flipped_sums(differences, num_resamples, np.random.default_rng([seed, 1]))
  # Sums in another order round differently: a tie is a tie.
  observed = abs(differences.sum()) - 1e-9 * np.abs(differences).sum()
  p_value = (1 + np.count_nonzero(np.abs(sums) >= observed)) / (1 + num_resamples)
  return Comparison(*interval, float("nan") if np.isnan(observed) else float(p_value))


def _check(values: np.ndarray, confidence: float, num_resamples: int) -> np.ndarray:
  values = np.asarray(values, np.float64)
  if values.ndim != 1 or len(values) == 0:
    raise ValueError(f"one value a user is needed, got shape {values.shape}")
  if not 0 < confidence < 1:
    raise ValueError(f"confidence must lie in (0, 1), got {confidence}")
  if num_resamples < 1:
    raise ValueError(f"num_resamples must be positive, got {num_resamples}")
  return values


def _resampled_means(values, num_resamples: int, rng: np.random.Generator) -> np.ndarray:
  size = len(values)
  distinct, counts = np.unique(values, return_counts=True)
  if _is_cheaper(distinct, size):
    draws = rng.multinomial(size, counts / size, size=num_resamples)
    return draws @ distinct / size
  means = np.empty(num_resamples)
  step = max(_CHUNK // size, 1)
  for start in range(0, num_resamples, step):
    part = means[start : start + step]
    part[:] = values[rng.integers(size, size=(len(part), size), dtype=np.int32)].mean(axis=1)
  return means


def _flipped_sums(differences, num_resamples: int, rng: np.random.Generator) -> np.ndarray:
  sizes, counts = np.unique(np.abs(differences), return_counts=True)
  if _is_cheaper(sizes, len(differences)):
    positive = rng.binomial(counts, 0.5, size=(num_resamples, len(counts)))
    return (2 * positive - counts) @ sizes
  sums = np.empty(num_resamples)
  step = max(_CHUNK // len(differences), 1)
  for start in range(0, num_resamples, step):
    part = sums[start : start + step]
    flips = rng.integers(2, size=(len(part), len(differences)), dtype=np.int8)
    part[:] = (2 * flips - 1).astype(np.float32) @ differences
  return sums


def _is_cheaper(distinct: np.ndarray, size: int) -> bool:
  """Whether counts of the distinct values are drawn faster than the users one by one.

  Both have the same distribution. A metric of one target takes few values, and a count costs as
  much as some thirty users.
  """
  return 30 * len(distinct) < size
