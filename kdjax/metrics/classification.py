r"""Metrics of classifiers and of click models.

Multi-class metrics take logits `[..., C]` and integer labels `[...]`; binary ones take one logit
an example. All but the area under the curve are quotients of sums: pass
`reduce_fn=kdjax.reduce.totals` to merge them exactly across batches and devices.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from kdjax.reduce import ReduceFn, reduce_loss, safe_divide
from kdjax.types import Array


def accuracy_metric(
  logits: Array,
  labels: Array,
  *,
  support: Array | None = None,
  where: Array | None = None,
  reduce_fn: ReduceFn = jnp.mean,
) -> Any:
  r"""Share of examples whose largest logit is the label's.

  $$\frac{[z_y = \max_c z_c]}{|\{c : z_c = \max z\}|}$$

  Of n classes tied for the largest each is right with probability 1/n.

  Args:
    logits: float `[..., C]`.
    labels: int `[...]` in [0, C).
    support: bool `[..., C]`, which classes exist.
    where: bool `[...]`, which examples count.
    reduce_fn: as in `kdjax.reduce.reduce_loss`; None gives one value an example.

  Returns:
    float32 in [0, 1]. An example with a NaN logit gives NaN.

  Raises:
    ValueError: if the shapes do not fit.

  Example:
    >>> import jax.numpy as jnp
    >>> float(accuracy_metric(jnp.array([[1.0, 2.0], [0.0, 0.0]]), jnp.array([1, 1])))
    0.75
  """
  logits = _supported(logits, labels, support)
  best = logits == jnp.max(logits, axis=-1, keepdims=True)
  right = jnp.take_along_axis(best, labels[..., None], axis=-1)[..., 0]
  values = right / jnp.maximum(jnp.sum(best, axis=-1), 1)
  values = jnp.where(jnp.any(jnp.isnan(logits), axis=-1), jnp.nan, values)
  return reduce_loss(values, where=where, reduce_fn=reduce_fn)


def log_loss_metric(
  logits: Array,
  labels: Array,
  *,
  support: Array | None = None,
  where: Array | None = None,
  reduce_fn: ReduceFn = jnp.mean,
) -> Any:
  r"""Negative log-likelihood of the labels, in nats: $\log \sum_c e^{z_c} - z_y$.

  Args:
    logits: float `[..., C]`.
    labels: int `[...]` in [0, C).
    support: bool `[..., C]`, which classes exist.
    where: bool `[...]`, which examples count.
    reduce_fn: as in `kdjax.reduce.reduce_loss`; None gives one value an example.

  Returns:
    float32, nats.

  Raises:
    ValueError: if the shapes do not fit.

  Example:
    >>> import jax.numpy as jnp
    >>> round(float(log_loss_metric(jnp.zeros([1, 4]), jnp.array([2]))), 4)
    1.3863
  """
  logits = _supported(logits, labels, support)
  picked = jnp.take_along_axis(logits, labels[..., None], axis=-1)[..., 0]
  values = jax.nn.logsumexp(logits, axis=-1) - picked
  return reduce_loss(values, where=where, reduce_fn=reduce_fn)


def binary_log_loss_metric(
  logits: Array, labels: Array, *, where: Array | None = None, reduce_fn: ReduceFn = jnp.mean
) -> Any:
  r"""Binary cross-entropy of clicks, in nats: $\log(1 + e^{z}) - y z$.

  Args:
    logits: float `[...]`; the probability is their sigmoid.
    labels: float or int `[...]`, 0 or 1 (or a probability).
    where: bool `[...]`, which examples count.
    reduce_fn: as in `kdjax.reduce.reduce_loss`; None gives one value an example.

  Returns:
    float32, nats.

  Raises:
    ValueError: if the shapes differ.

  Example:
    >>> import jax.numpy as jnp
    >>> round(float(binary_log_loss_metric(jnp.zeros(2), jnp.array([0, 1]))), 4)
    0.6931
  """
  logits, labels = _same_shape(logits, labels)
  values = jnp.maximum(logits, 0.0) - labels * logits + jnp.log1p(jnp.exp(-jnp.abs(logits)))
  return reduce_loss(values, where=where, reduce_fn=reduce_fn)


def binary_accuracy_metric(
  logits: Array,
  labels: Array,
  *,
  threshold: float = 0.0,
  where: Array | None = None,
  reduce_fn: ReduceFn = jnp.mean,
) -> Any:
  r"""Share of examples on their side of the threshold: $[\,[z > t] = y\,]$.

  Args:
    logits: float `[...]`.
    labels: float or int `[...]`, positive where above 0.
    threshold: logits above it predict a positive; 0 is a probability of one half.
    where: bool `[...]`, which examples count.
    reduce_fn: as in `kdjax.reduce.reduce_loss`; None gives one value an example.

  Returns:
    float32 in [0, 1].

  Raises:
    ValueError: if the shapes differ.

  Example:
    >>> import jax.numpy as jnp
    >>> float(binary_accuracy_metric(jnp.array([2.0, -1.0]), jnp.array([1, 1])))
    0.5
  """
  predicted, positive = _decide(logits, labels, threshold)
  values = _visible(predicted == positive, logits)
  return reduce_loss(values, where=where, reduce_fn=reduce_fn)


def binary_precision_metric(
  logits: Array,
  labels: Array,
  *,
  threshold: float = 0.0,
  where: Array | None = None,
  reduce_fn: ReduceFn = jnp.mean,
) -> Any:
  r"""Share of predicted positives that are positive: TP / (TP + FP), 0 if none is predicted.

  Args:
    logits: float `[...]`.
    labels: float or int `[...]`, positive where above 0.
    threshold: logits above it predict a positive.
    where: bool `[...]`, which examples count.
    reduce_fn: as in `kdjax.reduce.reduce_loss`; None gives 1 at true positives.

  Returns:
    float32 in [0, 1].

  Raises:
    ValueError: if the shapes differ.

  Example:
    >>> import jax.numpy as jnp
    >>> float(binary_precision_metric(jnp.array([2.0, 1.0, -1.0]), jnp.array([1, 0, 1])))
    0.5
  """
  predicted, positive = _decide(logits, labels, threshold)
  counts = predicted | jnp.isnan(logits)
  counts = counts if where is None else counts & where
  return reduce_loss(_visible(positive, logits), where=counts, reduce_fn=reduce_fn)


def binary_recall_metric(
  logits: Array,
  labels: Array,
  *,
  threshold: float = 0.0,
  where: Array | None = None,
  reduce_fn: ReduceFn = jnp.mean,
) -> Any:
  r"""Share of positives that are predicted: TP / (TP + FN), 0 if there is none.

  Args:
    logits: float `[...]`.
    labels: float or int `[...]`, positive where above 0.
    threshold: logits above it predict a positive.
    where: bool `[...]`, which examples count.
    reduce_fn: as in `kdjax.reduce.reduce_loss`; None gives 1 at true positives.

  Returns:
    float32 in [0, 1].

  Raises:
    ValueError: if the shapes differ.

  Example:
    >>> import jax.numpy as jnp
    >>> float(binary_recall_metric(jnp.array([2.0, 1.0, -1.0]), jnp.array([1, 0, 1])))
    0.5
  """
  predicted, positive = _decide(logits, labels, threshold)
  counts = positive if where is None else positive & where
  return reduce_loss(_visible(predicted, logits), where=counts, reduce_fn=reduce_fn)


def binary_f1_metric(
  logits: Array,
  labels: Array,
  *,
  threshold: float = 0.0,
  where: Array | None = None,
  reduce_fn: ReduceFn = jnp.mean,
) -> Any:
  r"""Harmonic mean of precision and recall: 2 TP / (2 TP + FP + FN), 0 if all are negative.

  It is the mean of "true positive" over predictions and positives together, so that it merges
  like every other mean.

  Args:
    logits: float `[...]`.
    labels: float or int `[...]`, positive where above 0.
    threshold: logits above it predict a positive.
    where: bool `[...]`, which examples count.
    reduce_fn: as in `kdjax.reduce.reduce_loss`; None gives `[..., 2]`, 1 at true positives.

  Returns:
    float32 in [0, 1].

  Raises:
    ValueError: if the shapes differ.

  Example:
    >>> import jax.numpy as jnp
    >>> float(binary_f1_metric(jnp.array([2.0, 1.0, -1.0]), jnp.array([1, 0, 1])))
    0.5
  """
  predicted, positive = _decide(logits, labels, threshold)
  values = _visible(predicted & positive, logits)
  predicted = predicted | jnp.isnan(logits)
  counts = jnp.stack([predicted, positive], axis=-1)
  if where is not None:
    counts = counts & where[..., None]
  return reduce_loss(jnp.stack([values, values], axis=-1), where=counts, reduce_fn=reduce_fn)


def auc_metric(
  scores: Array,
  labels: Array,
  *,
  support: Array | None = None,
  where: Array | None = None,
  reduce_fn: ReduceFn = jnp.mean,
) -> Any:
  r"""Area under the ROC curve: probability that a positive scores above a negative.

  $$\mathrm{AUC} = \frac{1}{P N} \sum_{p, n} [s_p > s_n] + \tfrac12 [s_p = s_n]$$

  The last axis holds the examples: `[N]` gives the area over a whole test set, `[U, N]` that of
  each user. It does not merge across batches: pass all scores at once. Sorting makes it
  O(N log N).

  Args:
    scores: float `[..., N]`.
    labels: float or int `[..., N]`, positive where above 0.
    support: bool `[..., N]`, which examples exist.
    where: bool `[...]`, which lists count.
    reduce_fn: as in `kdjax.reduce.reduce_loss`; None gives one value a list.

  Returns:
    float32 in [0, 1]. NaN for a list with a NaN score, or whose examples are all positive or all
    negative; 0 for an empty one.

  Raises:
    ValueError: if the shapes of scores, labels and support differ.

  Example:
    >>> import jax.numpy as jnp
    >>> float(auc_metric(jnp.array([0.1, 0.4, 0.4, 0.8]), jnp.array([0, 0, 1, 1])))
    0.875

  Reference:
    Fawcett, An introduction to ROC analysis, 2006 (the Mann-Whitney form).
  """
  for name, other in (("labels", labels), ("support", support)):
    if other is not None and other.shape != scores.shape:
      raise ValueError(f"{name} has shape {other.shape} but scores has {scores.shape}")
  exists = jnp.ones(scores.shape, bool) if support is None else support
  return reduce_loss(_areas(scores, labels, exists), where=where, reduce_fn=reduce_fn)


@jax.jit
def _areas(scores: Array, labels: Array, exists: Array) -> Array:
  """The area of every list; jitted, as dozens of small programs are slow outside of a jit."""
  nan = jnp.any(jnp.isnan(scores) & exists, axis=-1)
  keys = jnp.where(exists, scores.astype(jnp.float32), 0.0)
  positive = exists & (labels > 0)
  absent, keys, positive = lax.sort((~exists, keys, positive), dimension=-1, num_keys=2)
  negative = ~absent & ~positive

  axis = scores.ndim - 1
  differs = (keys[..., 1:] != keys[..., :-1]) | (absent[..., 1:] != absent[..., :-1])
  edge = jnp.ones_like(absent[..., :1])
  below = jnp.cumsum(negative, axis=-1) - negative  # Negatives before each place.
  # Of a run of ties: the negatives before its first place, and up to its last.
  first = lax.cummax(jnp.where(jnp.concatenate([edge, differs], -1), below, 0), axis=axis)
  upto = jnp.where(jnp.concatenate([differs, edge], -1), below + negative, keys.shape[-1])
  last = lax.cummin(upto, axis=axis, reverse=True)

  num_positive = jnp.sum(positive, axis=-1)
  num_negative = jnp.sum(negative, axis=-1)
  beaten = jnp.where(positive, 0.5 * (first + last), 0.0)
  share = safe_divide(beaten, num_negative[..., None].astype(jnp.float32))
  area = safe_divide(jnp.sum(share, axis=-1), num_positive)
  undefined = (num_positive == 0) ^ (num_negative == 0)
  return jnp.where(nan | undefined, jnp.nan, area)


def _supported(logits: Array, labels: Array, support: Array | None) -> Array:
  if labels.shape != logits.shape[:-1]:
    raise ValueError(f"labels has shape {labels.shape} but logits has {logits.shape}")
  if support is not None and support.shape != logits.shape:
    raise ValueError(f"support has shape {support.shape} but logits has {logits.shape}")
  logits = logits.astype(jnp.float32)
  return logits if support is None else jnp.where(support, logits, -jnp.inf)


def _same_shape(logits: Array, labels: Array) -> tuple[Array, Array]:
  if labels.shape != logits.shape:
    raise ValueError(f"labels has shape {labels.shape} but logits has {logits.shape}")
  return logits.astype(jnp.float32), labels.astype(jnp.float32)


def _decide(logits: Array, labels: Array, threshold: float) -> tuple[Array, Array]:
  logits, labels = _same_shape(logits, labels)
  return logits > threshold, labels > 0


def _visible(values: Array, logits: Array) -> Array:
  """`values` as float32, NaN where the logit is."""
  return jnp.where(jnp.isnan(logits), jnp.nan, values.astype(jnp.float32))
