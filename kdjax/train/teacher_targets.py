"""A teacher run once: its best k logits of every position, kept beside the training rows.

With them the log-normaliser of all its logits is kept, so that the mass of the rest is exact, and
the losses on `kdjax.losses.TopK` learn from them. Nothing of the teacher is left in the step.
"""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from kdjax.losses import TopK, top_k_targets
from kdjax.train.teacher_queries import map_rows
from kdjax.types import Apply, Array, Batch, Outputs, Params

NAME = "teacher_top_k"


def target_bytes(arrays: Mapping[str, np.ndarray], k: int) -> int:
  """What `encode_targets` will keep of these rows: 8 k + 4 bytes a position.

  Example:
    >>> target_bytes({"tokens": np.zeros([10, 64], np.int32)}, 50)
    258560
  """
  return next(iter(arrays.values())).size * (8 * k + 4)


def encode_targets(
  apply: Apply,
  params: Params,
  arrays: Mapping[str, np.ndarray],
  k: int,
  *,
  temperature: float = 1.0,
  name: str = NAME,
  rows_per_call: int = 64,
  progress: bool = False,
) -> dict[str, np.ndarray]:
  """The teacher's `kdjax.losses.top_k_targets` at every position of the training rows.

  Args:
    apply: of the teacher, whose logits are `[R, L, V]` or `FactoredLogits`; of those a row at a
      time is made whole.
    params: its parameters.
    arrays: training rows by name, `[R, L]`; the rows must be all that the teacher sees.
    k: how many logits to keep, in [1, V].
    temperature: the loss must be given the same.
    name: how the results are called.
    rows_per_call: rows of one compiled call.
    progress: whether to draw a progress bar.

  Returns:
    `<name>_values` float32 and `<name>_indices` int32 `[R, L, k]`, `<name>_log_normalizer` float32
    `[R, L]`: arrays to stand beside the rows, in memory or mapped.

  Raises:
    ValueError: if k is not in [1, V], the temperature is not positive, or there are no rows.
  """

  def targets(batch: Batch) -> TopK:
    return _targets(apply, params, batch, k, temperature)

  options: dict[str, Any] = {"rows_per_call": rows_per_call, "progress": progress}
  found = map_rows(targets, arrays, name=f"teacher's best {k}", **options)
  return {f"{name}_{field}": values for field, values in found._asdict().items()}


def with_targets(*, name: str = NAME) -> Apply:
  """A teacher's `apply`, of no params, for batches that bring what `encode_targets` kept of it.

  Its outputs have `TopK` for logits and no features.
  """

  def kept(params: Params, batch: Batch, *, key: Array | None = None) -> Outputs:
    del params, key
    return Outputs(TopK(*(batch[f"{name}_{field}"] for field in TopK._fields)), {})

  return kept


@functools.partial(jax.jit, static_argnums=(0, 3, 4))
def _targets(apply: Apply, params: Params, batch: Batch, k: int, temperature: float) -> TopK:
  logits = apply(params, batch).logits
  if not hasattr(logits, "query"):
    return top_k_targets(logits, k, temperature=temperature)

  def of_row(query: Array) -> TopK:
    return top_k_targets(logits._replace(query=query).dense(), k, temperature=temperature)

  return jax.lax.map(of_row, logits.query)
