"""A factored teacher run once: its queries kept beside the training rows.

What a teacher of sequences says of a position is one short vector; the table that turns it into
scores stays in its params. Kept in memory, the queries save the teacher's whole body in every
epoch, and change no number.
"""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm.auto import tqdm

from kdjax.types import Apply, Array, Batch, FactoredLogits, Outputs, Params

NAME = "teacher_query"


def encode_rows(
  apply: Apply,
  params: Params,
  arrays: Mapping[str, np.ndarray],
  *,
  dtype: Any = None,
  rows_per_call: int = 64,
  progress: bool = False,
) -> np.ndarray:
  """The teacher's query at every position of the training rows.

  Args:
    apply: of a teacher whose logits are `FactoredLogits`.
    params: its parameters.
    arrays: training rows by name, `[R, L, ...]`; the rows must be all that the teacher sees.
    dtype: of the result; the teacher's own by default.
    rows_per_call: rows of one compiled call.
    progress: whether to draw a progress bar.

  Returns:
    `[R, L, d]`, R * L * d values in memory.

  Raises:
    ValueError: if the teacher's logits are not factored.
  """
  num_rows = len(next(iter(arrays.values())))
  size = min(rows_per_call, num_rows)
  result: np.ndarray | None = None
  for start in tqdm(range(0, num_rows, size), desc="teacher's queries", disable=not progress):
    # The last block reaches back, so that all have one shape.
    first = min(start, num_rows - size)
    batch = {name: values[first : first + size] for name, values in arrays.items()}
    query = np.asarray(_queries(apply, params, batch, dtype))
    if result is None:
      result = np.empty((num_rows, *query.shape[1:]), query.dtype)
    result[first : first + size] = query
  if result is None:
    raise ValueError("there are no training rows to run the teacher on")
  return result


def with_queries(apply: Apply, *, name: str = NAME) -> Apply:
  """The teacher's `apply` for batches that bring its queries under `name`, or its logits.

  Logits are what a teacher of few classes has. Table, bias and any feature that a loss reads are
  computed as before; whatever nothing reads, the body that made the queries first of all, the
  compiler drops.
  """

  def cached(params: Params, batch: Batch, *, key: Array | None = None) -> Outputs:
    outputs = apply(params, batch, key=key)
    query, features = batch[name], dict(outputs.features)
    if not isinstance(outputs.logits, FactoredLogits):
      return Outputs(query, features)
    if "query" in features:
      features["query"] = query
    return Outputs(outputs.logits._replace(query=query), features)

  return cached


@functools.partial(jax.jit, static_argnums=(0, 3))
def _queries(apply: Apply, params: Params, batch: Batch, dtype: Any) -> Array:
  logits = apply(params, batch).logits
  if not hasattr(logits, "query"):
    raise ValueError("only a teacher with FactoredLogits has queries to keep; run this one live")
  return logits.query if dtype is None else logits.query.astype(jnp.dtype(dtype))
