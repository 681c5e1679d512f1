"""A teacher run once: its queries, or its scores, kept beside the training rows.

What a teacher of sequences says of a position is one short vector; the table that turns it into
scores stays in its params. Kept in memory, the queries save the teacher's whole body in every
epoch, and change no number.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm.auto import tqdm

from kdjax.tree import to_host
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
  return map_rows(
    lambda batch: _queries(apply, params, batch, dtype),
    arrays,
    name="teacher's queries",
    rows_per_call=rows_per_call,
    progress=progress,
  )


def map_rows(
  function: Callable[[Batch], Any],
  arrays: Mapping[str, np.ndarray],
  *,
  name: str,
  rows_per_call: int = 64,
  progress: bool = False,
) -> Any:
  """What a function makes of all training rows, some of them at a time.

  Args:
    function: `(batch) -> tree` of arrays whose first axis is that of the batch.
    arrays: rows by name, `[R, ...]`.
    name: of the progress bar.
    rows_per_call: rows of one call, at most; all calls have as many.
    progress: whether to draw it.

  Returns:
    The tree, of NumPy arrays `[R, ...]`.

  Raises:
    ValueError: if there are no rows.
  """
  num_rows = len(next(iter(arrays.values())))
  size, result = min(rows_per_call, num_rows), None
  for start in tqdm(range(0, num_rows, max(size, 1)), desc=name, disable=not progress):
    # The last block reaches back, so that all have one shape.
    rows = slice(first := min(start, num_rows - size), first + size)
    part = to_host(function({name: values[rows] for name, values in arrays.items()}))
    if result is None:
      result = jax.tree.map(lambda x: np.empty((num_rows, *x.shape[1:]), x.dtype), part)
    for whole, values in zip(jax.tree.leaves(result), jax.tree.leaves(part), strict=True):
      whole[rows] = values
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


def with_outputs(*, name: str = "teacher", features: Sequence[str] = ()) -> Apply:
  """The `apply` of a teacher that is not needed any more: a batch brings what it would say.

  Args:
    name: of the teacher; the batch holds its logits under `<name>_scores`.
    features: which of its features the batch holds, each under `<name>_<feature>`.

  Returns:
    Apply that reads no params.

  Example:
    >>> with_outputs()({}, {"teacher_scores": jnp.ones([1, 2])}).logits.shape
    (1, 2)
  """

  def kept(params: Params, batch: Batch, *, key: Array | None = None) -> Outputs:
    del params, key
    own = {feature: batch[f"{name}_{feature}"] for feature in features}
    return Outputs(batch[f"{name}_scores"], own)

  return kept


@functools.partial(jax.jit, static_argnums=(0, 3))
def _queries(apply: Apply, params: Params, batch: Batch, dtype: Any) -> Array:
  logits = apply(params, batch).logits
  if not hasattr(logits, "query"):
    raise ValueError("only a teacher with FactoredLogits has queries to keep; run this one live")
  return logits.query if dtype is None else logits.query.astype(jnp.dtype(dtype))
