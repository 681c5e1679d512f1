"""Losses over a whole catalogue in factored form, which never build the [tokens, items] matrix."""

import jax.numpy as jnp

from kdjax.losses.common import FLOOR, check_temperature, constant
from kdjax.losses.sweep import Target, choose_blocks, each_loss, weighted_loss
from kdjax.reduce import Mean, ReduceFn, reduce_loss, totals
from kdjax.types import Array, FactoredLogits


def catalog_cross_entropy_loss(
  student: FactoredLogits,
  labels: Array,
  *,
  block: int | None = None,
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
    where: bool `[...]`, the positions that count.
    reduce_fn: see `kdjax.reduce.reduce_loss`. `jnp.mean`, `jnp.sum` and `totals` take gradients
      in the forward sweep, others recompute it on the way back.

  Returns:
    float32, in nats: a scalar, or `[...]` for `reduce_fn=None`. A label out of range that counts
    gives NaN. Differentiable once.

  Raises:
    ValueError: if `labels` or `where` has not the shape `[...]`, or `block` < 1.

  Example:
    >>> import jax.numpy as jnp
    >>> student = FactoredLogits(jnp.zeros([2, 3]), jnp.ones([10, 3]))
    >>> labels = jnp.array([4, -1])
    >>> round(float(catalog_cross_entropy_loss(student, labels, where=labels >= 0)), 4)
    2.3026

  Reference:
    Wijmans et al., Cut Your Losses in Large-Vocabulary Language Models, 2024, arXiv:2411.09009
    (blocks and recomputation; here without their gradient filtering, so exact).
  """
  if jnp.shape(labels) != student.query.shape[:-1]:
    raise ValueError(f"labels have shape {jnp.shape(labels)}, expected {student.query.shape[:-1]}")
  labels = jnp.asarray(labels)
  safe = labels if where is None else jnp.where(where, labels, 0)
  wrong = (safe < 0) | (safe >= student.num_items)
  # Adding NaN, and not selecting it, keeps the gradient of the other positions whole.
  target = Target(jnp.where(wrong, student.num_items, safe).reshape(-1))
  return _reduced(student, target, 1.0, block, where, reduce_fn, wrong=wrong)


def catalog_kl_loss(
  student: FactoredLogits,
  teacher: FactoredLogits,
  *,
  temperature: float = 1.0,
  block: int | None = None,
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
    where: bool `[...]`, the positions that count.
    reduce_fn: see `kdjax.reduce.reduce_loss`. `jnp.mean`, `jnp.sum` and `totals` take gradients
      in the forward sweep, others recompute it on the way back.

  Returns:
    float32, in nats times T**2: a scalar, or `[...]` for `reduce_fn=None`. Differentiable once.

  Raises:
    ValueError: if leading axes or V differ, `where` has not the shape `[...]`, T <= 0 or
      `block` < 1.

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
  check_temperature(temperature)
  student_shape = (*student.query.shape[:-1], student.num_items)
  teacher_shape = (*teacher.query.shape[:-1], teacher.num_items)
  if student_shape != teacher_shape:
    raise ValueError(
      f"student and teacher differ in shape of logits: {student_shape} and {teacher_shape}"
    )
  t_query, t_table, t_bias = constant(tuple(teacher))
  target = Target(_scaled(t_query, where, temperature), t_table, _bias(t_bias, temperature))
  return _reduced(student, target, temperature, block, where, reduce_fn)


def _reduced(student, target, temperature, block, where, reduce_fn, wrong=None):
  """Runs the sweep that suits the reduction."""
  if block is not None and block < 1:
    raise ValueError(f"block must be positive, got {block}")
  leading = student.query.shape[:-1]
  if where is not None and jnp.shape(where) != leading:
    raise ValueError(f"where has shape {jnp.shape(where)} but the unreduced loss has {leading}")
  query = _scaled(student.query, where, temperature)
  table, bias = student.table, _bias(student.bias, temperature)
  if hasattr(table, "rdot"):
    table = table.take(jnp.arange(student.num_items))
  table = jnp.asarray(table)
  blocks = choose_blocks(query.shape[0], student.num_items, block)
  args = (blocks, query, table, bias, target)
  scale = jnp.asarray(temperature, jnp.float32) ** 2
  if reduce_fn in (jnp.mean, jnp.sum, totals):
    seen = jnp.ones(leading, bool) if where is None else jnp.asarray(where)
    total = scale * weighted_loss(*args, seen.reshape(-1).astype(jnp.float32))
    if wrong is not None:
      total += jnp.where(jnp.any(wrong & seen), jnp.nan, 0.0)
    mean = Mean(total, jnp.sum(seen, dtype=jnp.float32))
    return total if reduce_fn is jnp.sum else mean if reduce_fn is totals else mean.compute()
  losses = scale * each_loss(*args).reshape(leading)
  if wrong is not None:
    losses += jnp.where(wrong, jnp.nan, 0.0)
  return reduce_loss(losses, where=where, reduce_fn=reduce_fn)


def _scaled(query: Array, where: Array | None, temperature) -> Array:
  """`query / temperature` as `[T, d]` in its own dtype, and 0 where masked."""
  query = jnp.asarray(query)
  # A `where` of a wrong shape is refused with its own message.
  if where is not None and jnp.shape(where) == query.shape[:-1]:
    query = jnp.where(jnp.asarray(where)[..., None], query, jnp.zeros([], query.dtype))
  return query.reshape(-1, query.shape[-1]) / jnp.asarray(temperature, query.dtype)


def _bias(bias: Array | None, temperature) -> Array | None:
  return None if bias is None else jnp.maximum(bias, FLOOR) / temperature
