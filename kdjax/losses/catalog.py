"""Losses over a whole catalogue in factored form, which never build the [tokens, items] matrix."""

import functools
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from kdjax.losses.common import constant
from kdjax.losses.factored import check_labels, scaled_teacher, sweep_loss
from kdjax.losses.sweep import Mix, Target, sweep
from kdjax.reduce import ReduceFn
from kdjax.types import Array, FactoredLogits


def catalog_cross_entropy_loss(
  student: FactoredLogits,
  labels: Array,
  *,
  block: int | None = None,
  axis_name: str | None = None,
  filter_eps: float | None = None,
  where: Array | None = None,
  reduce_fn: ReduceFn = jnp.mean,
):
  r"""Full softmax cross-entropy over a catalogue, in blocks.

  $$L = \log \sum_v e^{z_v} - z_y, \quad z_v = q \cdot E_v + b_v$$

  The gradients are taken in the sweep that computes the loss: $q$ gets
  $\sum_v p_v E_v - E_y$ and $E_v$ gets $(p_v - [v = y]) q$. bfloat16 query and table multiply in
  bfloat16 with float32 accumulation. An item whose bias is -inf is impossible.

  Args:
    student: query float `[..., d]`, table float `[V, d]` (or a `Table`, dequantized first), bias.
    labels: int `[...]` in `[0, V)`; masked ones may be anything (PAD).
    block: items a block, or None to choose from the shapes.
    axis_name: inside `jax.shard_map`, the mesh axis over which the rows of the tables are split
      evenly; labels stay those of the whole catalogue. None where they are whole.
    filter_eps: None for exact gradients, or epsilon >= 0: a block of items gives none to a block of
      tokens if of each token less than epsilon times its share of V lies there. Then the gradient
      by a token's logits is off by less than epsilon in sum of absolute values, and that by its
      query by epsilon times the largest norm of a row of the table; the loss is exact. Needs
      several blocks, and pays where likely items stand together, as when sorted by popularity.
    where: bool `[...]`, the positions that count.
    reduce_fn: see `kdjax.reduce.reduce_loss`. `jnp.mean`, `jnp.sum` and `totals` take gradients
      in the forward sweep, others recompute it on the way back.

  Returns:
    float32, in nats: a scalar, or `[...]` for `reduce_fn=None`. A label out of range that counts
    gives NaN. Differentiable once.

  Raises:
    ValueError: if `labels` or `where` has not the shape `[...]`, `block` < 1 or `filter_eps` < 0.

  Example:
    >>> import jax.numpy as jnp
    >>> student = FactoredLogits(jnp.zeros([2, 3]), jnp.ones([10, 3]))
    >>> labels = jnp.array([4, -1])
    >>> round(float(catalog_cross_entropy_loss(student, labels, where=labels >= 0)), 4)
    2.3026

  Reference:
    Wijmans et al., Cut Your Losses in Large-Vocabulary Language Models, 2024, arXiv:2411.09009
    (blocks, recomputation and gradient filtering; here by the mass of a block and not by its
    largest probability, which bounds the error, and off unless asked for).
  """
  labels, wrong = check_labels(student, labels, where, axis_name)
  options: dict[str, Any] = {
    "block": block,
    "where": where,
    "reduce_fn": reduce_fn,
    "axis_name": axis_name,
    "kept": (student,),
  }
  run = _filtering(filter_eps)
  return sweep_loss(run, student, (Target(labels), Mix()), wrong=wrong, **options)[0]


def catalog_kl_loss(
  student: FactoredLogits,
  teacher: FactoredLogits,
  *,
  temperature: float = 1.0,
  block: int | None = None,
  axis_name: str | None = None,
  filter_eps: float | None = None,
  where: Array | None = None,
  reduce_fn: ReduceFn = jnp.mean,
):
  r"""Temperature-softened forward KL over a catalogue, times temperature**2, in blocks.

  $$L = T^2 \sum_v p^t_v (\log p^t_v - \log p^s_v), \quad
  p = \mathrm{softmax}((E q + b) / T)$$

  Equal to `kl_loss(student.dense(), teacher.dense(), ...)`. Student and teacher may differ in
  width and dtype. An item whose bias is -inf is impossible.

  Args:
    student: query float `[..., d_s]`, table float `[V, d_s]` (or a `Table`, dequantized first).
    teacher: query float `[..., d_t]`, table `[V, d_t]` or a `Table`; receives no gradient.
    temperature: T > 0, shared by both.
    block: items a block, or None to choose from the shapes.
    axis_name: inside `jax.shard_map`, the mesh axis over which the rows of the tables are split
      evenly; labels stay those of the whole catalogue. None where they are whole.
    filter_eps: None for exact gradients, or epsilon >= 0: a block of items gives none to a block of
      tokens if of each token less than epsilon times its share of V lies there, by student and by
      teacher. Then the gradient by a token's logits is off by less than 2 T epsilon in sum of
      absolute values, and that by its query by as much times the largest norm of a row of the
      table; the loss is exact. See `catalog_cross_entropy_loss` for when it pays.
    where: bool `[...]`, the positions that count.
    reduce_fn: see `kdjax.reduce.reduce_loss`. `jnp.mean`, `jnp.sum` and `totals` take gradients
      in the forward sweep, others recompute it on the way back.

  Returns:
    float32, in nats times T**2: a scalar, or `[...]` for `reduce_fn=None`. Differentiable once.

  Raises:
    ValueError: if leading axes or V differ, `where` has not the shape `[...]`, T <= 0, `block` < 1
      or `filter_eps` < 0.

  Example:
    >>> import jax.numpy as jnp
    >>> student = FactoredLogits(jnp.zeros([1, 1]), jnp.ones([2, 1]))
    >>> teacher = FactoredLogits(jnp.ones([1, 2]), jnp.log(jnp.array([[0.9, 1.0], [0.1, 1.0]])))
    >>> round(float(catalog_kl_loss(student, teacher)), 4)
    0.3681

  Reference:
    Hinton, Vinyals, Dean, Distilling the Knowledge in a Neural Network, 2015, arXiv:1503.02531;
    Hsu et al., Liger Kernel, 2024, arXiv:2410.10989 (losses fused with the last linear layer).
  """
  target = Target(teacher=scaled_teacher(student, teacher, where, temperature))
  mix = Mix(scale=jnp.asarray(temperature, jnp.float32) ** 2)
  options: dict[str, Any] = {
    "block": block,
    "where": where,
    "reduce_fn": reduce_fn,
    "axis_name": axis_name,
    "kept": (student, teacher),
  }
  run = _filtering(filter_eps)
  return sweep_loss(run, student, (target, mix), temperature=temperature, **options)[0]


def catalog_distillation_loss(
  student: FactoredLogits,
  teacher: FactoredLogits,
  labels: Array,
  *,
  label_weight: float | Array = 0.5,
  distill_weight: float | Array = 0.5,
  temperature: float = 1.0,
  block: int | None = None,
  axis_name: str | None = None,
  filter_eps: float | None = None,
  parts: bool = False,
  where: Array | None = None,
  reduce_fn: ReduceFn = jnp.mean,
):
  r"""Cross-entropy and softened KL over a catalogue in one sweep, in blocks.

  $$L = w_l\, \mathrm{CE}(z^s, y) + w_d\, T^2 \sum_v p^t_v (\log p^t_v - \log p^s_v), \quad
  p = \mathrm{softmax}(z / T)$$

  The same as the weighted sum of `catalog_cross_entropy_loss` and `catalog_kl_loss`, for less: the
  student's logits are computed once, its two gradients are one product each, and at T = 1 both
  parts share one softmax.

  Args:
    student: query float `[..., d_s]`, table float `[V, d_s]` (or a `Table`, dequantized first).
    teacher: query float `[..., d_t]`, table `[V, d_t]` or a `Table`; receives no gradient.
    labels: int `[...]` in `[0, V)`; masked ones may be anything (PAD).
    label_weight: w_l, of the cross-entropy.
    distill_weight: w_d, of the KL.
    temperature: T > 0 of the KL, shared by both; the cross-entropy is taken at 1.
    block: items a block, or None to choose from the shapes.
    axis_name: inside `jax.shard_map`, the mesh axis over which the rows of the tables are split
      evenly; labels stay those of the whole catalogue. None where they are whole.
    filter_eps: None for exact gradients, or epsilon >= 0: a block of items gives none to a block of
      tokens if of each token less than epsilon times its share of V lies there, by every softmax.
      Then the gradient by a token's logits is off by less than (w_l + 2 T w_d) epsilon in sum of
      absolute values, and that by its query by as much times the largest norm of a row of the
      table; the loss is exact. See `catalog_cross_entropy_loss` for when it pays.
    parts: also return what the loss is made of, for the log.
    where: bool `[...]`, the positions that count.
    reduce_fn: see `kdjax.reduce.reduce_loss`. `jnp.mean`, `jnp.sum` and `totals` take gradients
      in the forward sweep, others recompute it on the way back.

  Returns:
    float32, in nats: a scalar, or `[...]` for `reduce_fn=None`. With `parts`, a pair of it and
    `{"cross_entropy": ..., "kl": ...}`: both before their weights (the KL with its T**2), reduced
    alike, without gradient. A label out of range that counts gives NaN. Differentiable once.

  Raises:
    ValueError: as `catalog_cross_entropy_loss` and `catalog_kl_loss`.

  Example:
    >>> import jax.numpy as jnp
    >>> student = FactoredLogits(jnp.zeros([1, 1]), jnp.ones([2, 1]))
    >>> teacher = FactoredLogits(jnp.ones([1, 2]), jnp.log(jnp.array([[0.9, 1.0], [0.1, 1.0]])))
    >>> weights = {"label_weight": 0.2, "distill_weight": 0.8}
    >>> round(float(catalog_distillation_loss(student, teacher, jnp.array([0]), **weights)), 4)
    0.4331

  Reference:
    Hinton, Vinyals, Dean, Distilling the Knowledge in a Neural Network, 2015, arXiv:1503.02531.
  """
  labels, wrong = check_labels(student, labels, where, axis_name)
  target = Target(labels, scaled_teacher(student, teacher, where, temperature))
  shared = isinstance(temperature, int | float) and temperature == 1
  mix = Mix(
    jnp.asarray(label_weight, jnp.float32),
    jnp.asarray(distill_weight, jnp.float32),
    jnp.asarray(temperature, jnp.float32) ** 2,
    None if shared else jnp.asarray(temperature, jnp.float32),
  )
  options: dict[str, Any] = {
    "block": block,
    "where": where,
    "reduce_fn": reduce_fn,
    "axis_name": axis_name,
    "wrong": wrong,
    "kept": (student, teacher),
  }
  run = _filtering(filter_eps)
  loss, each = sweep_loss(run, student, (target, mix), temperature=temperature, **options)
  return (loss, constant({"cross_entropy": each.label, "kl": each.teacher})) if parts else loss


def _filtering(filter_eps: float | None) -> Callable[..., Any]:
  """The sweep that leaves out what `filter_eps` allows it to."""
  if filter_eps is None:
    return sweep
  if not filter_eps >= 0:
    raise ValueError(f"filter_eps must not be negative, got {filter_eps}")
  return functools.partial(sweep, filter_eps=float(filter_eps))
