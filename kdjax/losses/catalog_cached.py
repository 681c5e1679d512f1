"""Labels beside a teacher known in part, over a catalogue in one sweep."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from kdjax.losses.catalog_top_k import best_and_rest, drawn_items, student_buckets
from kdjax.losses.common import constant, kl_divergence
from kdjax.losses.factored import check_labels, count_items, sweep_loss
from kdjax.losses.normalized import Given, Outer, sweep_normalizer
from kdjax.losses.sampled_targets import SampledTargets
from kdjax.losses.top_k import TopK
from kdjax.reduce import ReduceFn
from kdjax.types import Array, FactoredLogits


def catalog_cached_distillation_loss(
  student: FactoredLogits,
  teacher: TopK | SampledTargets,
  labels: Array,
  *,
  label_weight: float | Array = 0.5,
  distill_weight: float | Array = 0.5,
  block: int | None = None,
  axis_name: str | None = None,
  parts: bool = False,
  where: Array | None = None,
  reduce_fn: ReduceFn = jnp.mean,
):
  r"""Labels and what was kept of a teacher over a catalogue in one sweep, in blocks.

  $$L = w_l\, \mathrm{CE}(z^s, y) + w_d \left( \sum_{v \in K} p^t_v \log \frac{p^t_v}{p^s_v} +
  \bar p^t \log \frac{\bar p^t}{\bar p^s} \right), \quad \bar p = 1 - \sum_{v \in K} p_v$$

  The same as the weighted sum of `catalog_cross_entropy_loss` and `catalog_top_k_kl_loss`, or for
  draws `catalog_sampled_cross_entropy_loss`, at a temperature of 1, where both ask for one
  log-normaliser: for half the work.

  Args:
    student: query float `[..., d]`, table float `[V, d]` (or a `Table`, dequantized first), bias.
    teacher: TopK of arrays `[..., k]` and `[...]`, no item twice, or SampledTargets of arrays
      `[..., N]`; receives no gradient.
    labels: int `[...]` in `[0, V)`; masked ones may be anything (PAD).
    label_weight: w_l, of the cross-entropy.
    distill_weight: w_d, of the KL (of draws: of the cross-entropy on them).
    block: items a block, or None to choose from the shapes.
    axis_name: inside `jax.shard_map`, the mesh axis over which the rows of the tables are split
      evenly; labels stay those of the whole catalogue. None where they are whole.
    parts: also return what the loss is made of, for the log.
    where: bool `[...]`, the positions that count.
    reduce_fn: see `kdjax.reduce.reduce_loss`. `jnp.mean`, `jnp.sum` and `totals` take gradients
      in the forward sweep, others recompute it on the way back.

  Returns:
    float32, in nats: a scalar, or `[...]` for `reduce_fn=None`. With `parts`, a pair of it and
    `{"cross_entropy": ..., "teacher": ...}`: both before their weights, reduced alike, without
    gradient. A label or an index out of range that counts gives NaN. Differentiable once.

  Raises:
    ValueError: as `catalog_cross_entropy_loss` and `catalog_top_k_kl_loss`.

  Example:
    >>> import jax.numpy as jnp
    >>> teacher = TopK(jnp.log(jnp.array([[0.9]])), jnp.array([[0]]), jnp.zeros([1]))
    >>> student = FactoredLogits(jnp.zeros([1, 2]), jnp.ones([3, 2]))
    >>> round(float(catalog_cached_distillation_loss(student, teacher, jnp.array([2]))), 4)
    0.9014

  Reference:
    As `top_k_kl_loss`; Hinton, Vinyals, Dean, Distilling the Knowledge in a Neural Network, 2015,
    arXiv:1503.02531 (labels beside the teacher).
  """
  labels, wrong_label = check_labels(student, labels, where, axis_name)
  values: Any
  if isinstance(teacher, TopK):
    items, log_t, wrong = best_and_rest(student, teacher, where, axis_name)
    hit = items == labels[:, None]
    # No item may be left out of the rest twice.
    labels = jnp.where(jnp.any(hit, axis=-1), count_items(student, axis_name), labels)
    outer, values = _BEST, (log_t, hit)
  else:
    items, shares, wrong = drawn_items(student, teacher, where, axis_name)
    outer, values = _DRAWN, shares
  items = jnp.concatenate([items, labels[:, None].astype(items.dtype)], axis=-1)
  weights = [
    jnp.broadcast_to(jnp.asarray(w, jnp.float32), len(items))
    for w in (label_weight, distill_weight)
  ]
  options: dict[str, Any] = {
    "block": block,
    "where": where,
    "reduce_fn": reduce_fn,
    "axis_name": axis_name,
    "wrong": wrong | wrong_label,
  }
  sweep = functools.partial(sweep_normalizer, outer)
  loss, each = sweep_loss(sweep, student, Given(items, (values, *weights)), **options)
  return (loss, constant(each)) if parts else loss


def _best(log_rest: Array, logits: Array, values) -> tuple[Array, dict[str, Array]]:
  (log_t, hit), *weights = values
  kept, label = logits[:, :-1], logits[:, -1]
  known = jnp.any(hit, axis=-1)
  # The teacher's rest is what is left over beside its best, the label too where it is none of them.
  rest = jnp.where(known, log_rest, jnp.logaddexp(log_rest, label))
  label = jnp.where(known, jnp.sum(jnp.where(hit, kept, 0.0), axis=-1), label)
  buckets = student_buckets(rest, kept, log_t)
  log_z = jax.nn.logsumexp(buckets, axis=-1)
  return _weigh(log_z - label, kl_divergence(log_t, buckets - log_z[:, None]), *weights)


def _drawn(log_z: Array, logits: Array, values) -> tuple[Array, dict[str, Array]]:
  shares, *weights = values
  surprise = log_z[:, None] - logits
  return _weigh(surprise[:, -1], jnp.sum(shares * surprise[:, :-1], axis=-1), *weights)


def _weigh(label: Array, teacher: Array, label_weight: Array, distill_weight: Array):
  parts = {"cross_entropy": label, "teacher": teacher}
  return label_weight * label + distill_weight * teacher, parts


_BEST, _DRAWN = Outer(_best, others=True), Outer(_drawn, others=False)
