"""A teacher run once: what losses need of it, coded in bytes beside the training rows.

Of every position its best logits are kept with the exact mass of the rest, and where wanted some
draws from that rest, which make gradients unbiased, and features. Coded, a row is one array of
bytes, in memory or in shards on disk; the compiled step decodes it, and the objective cannot tell
it from a live teacher.
"""

import functools
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tqdm.auto import tqdm

from kdjax.data import shards
from kdjax.losses import (
  SampledTargets,
  TopK,
  catalog_sample_targets,
  catalog_top_k_targets,
)
from kdjax.tree import to_host
from kdjax.types import Apply, Array, Batch, Outputs, Params

NAME = "teacher_cache"
_NONE = 255  # The int8 code of a logit that is not there.


class Coding(NamedTuple):
  """What is kept of a teacher at each position, and in how many bits.

  Attributes:
    num_classes: V.
    k: its best so many logits, in [1, V].
    values: of the logits' coding. float32 as they are; bfloat16 with 8 bits of mantissa; int8 in
      254 even steps between the position's best and worst. The mass of all is exact in each.
    samples: draws from what is not among the best; 0 for none.
    temperature: of the softmax; losses must be given the same.
    features: name and shape (of a row) of each feature that is kept, in bfloat16.
  """

  num_classes: int
  k: int
  values: Literal["float32", "bfloat16", "int8"] = "bfloat16"
  samples: int = 0
  temperature: float = 1.0
  features: tuple[tuple[str, tuple[int, ...]], ...] = ()

  def fields(self, length: int) -> dict[str, tuple[Any, tuple[int, ...]]]:
    """Dtype and shape of what a row of so many positions is made of, in order."""
    ids = np.dtype(next(d for d in ("u1", "u2", "u4") if self.num_classes <= np.iinfo(d).max + 1))
    value = {"int8": jnp.uint8}.get(self.values, jnp.dtype(self.values))
    found: dict[str, tuple[Any, tuple[int, ...]]] = {
      "log_normalizer": (np.float32, (length,)),
      "tail": (np.float32, (length,)),
      "values": (value, (length, self.k)),
      "indices": (ids, (length, self.k)),
    }
    if self.values == "int8":
      found["worst"] = (np.float32, (length,))
    if self.samples:
      found["drawn"] = (ids, (length, self.samples))
    return found | {f"feature_{n}": (jnp.bfloat16, tuple(s)) for n, s in self.features}

  def row_bytes(self, length: int) -> int:
    """Bytes of a row.

    Example:
      >>> Coding(num_classes=12_000, k=50).row_bytes(64)
      13312
    """
    fields = self.fields(length).values()
    return sum(int(np.prod(shape)) * jnp.dtype(dtype).itemsize for dtype, shape in fields)


def check(coding: Coding) -> None:
  """Raises ValueError for what cannot be kept."""
  if not 1 <= coding.k <= coding.num_classes:
    raise ValueError(f"k must lie in [1, {coding.num_classes:,}], got {coding.k}")
  if coding.samples and coding.k == coding.num_classes:
    raise ValueError("nothing is left to draw from where all logits are kept")


@functools.partial(jax.jit, static_argnums=(0, 2))
def encode(apply: Apply, params: Params, coding: Coding, batch: Batch, key: Array) -> Array:
  """Runs the teacher and codes what it says.

  Args:
    apply: of the teacher, whose logits are `[B, L, V]` or `FactoredLogits`.
    params: its parameters.
    coding: what to keep.
    batch: rows of the student's training that are all that the teacher sees.
    key: PRNG key of the draws.

  Returns:
    uint8 `[B, W]`.

  Raises:
    ValueError: if the teacher has another number of classes, or no such feature.
  """
  outputs = apply(params, batch)
  logits = outputs.logits
  classes = logits.num_items if hasattr(logits, "num_items") else logits.shape[-1]
  if classes != coding.num_classes:
    raise ValueError(f"the teacher has {classes:,} classes, the coding {coding.num_classes:,}")
  options: dict[str, Any] = {"temperature": coding.temperature}
  best = catalog_top_k_targets(logits, coding.k, **options)
  log_p = jnp.where(best.values > -1e20, best.values - best.log_normalizer[..., None], -jnp.inf)
  parts: dict[str, Array] = {
    "log_normalizer": best.log_normalizer,
    "tail": jnp.maximum(1.0 - jnp.sum(jnp.exp(log_p), axis=-1), 0.0),
    "values": best.values,
    "indices": best.indices,
  }
  if coding.values == "int8":
    finite = best.values > -1e20
    parts["worst"] = jnp.min(jnp.where(finite, best.values, 0.0), axis=-1)
    steps = -254.0 * best.values / jnp.minimum(parts["worst"], -1e-30)[..., None]
    parts["values"] = jnp.where(finite, jnp.round(-steps), _NONE)
  if coding.samples:
    drawn = catalog_sample_targets(key, logits, coding.samples, keep=coding.k, **options)
    parts["drawn"] = drawn.indices[..., coding.k :]
    # The rest's mass, summed where it is, is exact where 1 - sum is rounding.
    parts["tail"] = drawn.weights[..., -1] * coding.samples
  for name, _ in coding.features:
    if name not in outputs.features:
      known = ", ".join(sorted(outputs.features))
      raise ValueError(f"the teacher has no feature {name!r}; it has {known}")
    parts[f"feature_{name}"] = outputs.features[name]
  length = best.log_normalizer.shape[-1]
  coded = []
  for name, (dtype, shape) in coding.fields(length).items():
    part = parts[name].astype(dtype)
    if part.shape[1:] != shape:
      raise ValueError(f"{name} has shape {part.shape[1:]}, the coding says {shape}")
    coded.append(_to_bytes(part))
  return jnp.concatenate(coded, axis=1)


def decode(
  coding: Coding, rows: Array, length: int
) -> tuple[TopK | SampledTargets, dict[str, Array]]:
  """What `encode` kept: targets `[B, L, ...]`, and features in float32.

  Args:
    coding: as it was encoded.
    rows: uint8 `[B, W]`.
    length: L, positions of a row.

  Returns:
    `TopK`, or with draws `SampledTargets` of the k best and the draws, and features by name.
  """
  parts, start = {}, 0
  for name, (dtype, shape) in coding.fields(length).items():
    size = int(np.prod(shape)) * jnp.dtype(dtype).itemsize
    parts[name] = _from_bytes(rows[:, start : start + size], dtype, shape)
    start += size
  if coding.values == "int8":
    code = parts["values"].astype(jnp.float32)
    values = jnp.where(code == _NONE, -jnp.inf, code * parts["worst"][..., None] / 254.0)
  else:
    values = parts["values"].astype(jnp.float32)
    values = jnp.where(values > -1e20, values, -jnp.inf)
  features = {name: parts[f"feature_{name}"].astype(jnp.float32) for name, _ in coding.features}
  # Coded values add up to another mass: they share the one that is known.
  tail = parts["tail"]
  log_p = (
    jax.nn.log_softmax(values, axis=-1) + jnp.log1p(-jnp.minimum(tail, 1 - 2.0**-24))[..., None]
  )
  indices = parts["indices"].astype(jnp.int32)
  if not coding.samples:
    log_z = parts["log_normalizer"]
    return TopK(log_p + log_z[..., None], indices, log_z), features
  drawn = parts["drawn"].astype(jnp.int32)
  weights = jnp.broadcast_to(tail[..., None] / coding.samples, drawn.shape)
  return SampledTargets(
    jnp.concatenate([indices, drawn], axis=-1), jnp.concatenate([jnp.exp(log_p), weights], axis=-1)
  ), features


def with_cache(coding: Coding, *, name: str = NAME) -> Apply:
  """A teacher's `apply`, of no params, for batches that bring its rows under `name`.

  Its logits are what `decode` gives; positions are those of the batch's other arrays.
  """

  def kept(params: Params, batch: Batch, *, key: Array | None = None) -> Outputs:
    del params, key
    length = batch["segments"].shape[1]
    return Outputs(*decode(coding, batch[name], length))

  return kept


def encode_rows(
  apply: Apply,
  params: Params,
  arrays: Mapping[str, np.ndarray],
  coding: Coding,
  *,
  seed: int = 0,
  rows: range | None = None,
  rows_per_call: int = 64,
  progress: bool = False,
) -> np.ndarray:
  """Codes training rows, in memory.

  Args:
    apply: of the teacher.
    params: its parameters.
    arrays: training rows by name, `[R, L]`, among them `segments`.
    coding: what to keep.
    seed: of the draws, which depend on it and on the numbers of the rows alone.
    rows: which of them; all by default.
    rows_per_call: rows of one compiled call, at most.
    progress: whether to draw a progress bar.

  Returns:
    uint8 `[len(rows), W]`.

  Raises:
    ValueError: as `encode`, or if there are no rows or nothing to keep.
  """
  check(coding)
  num_rows, length = arrays["segments"].shape
  rows = range(num_rows) if rows is None else rows
  if not rows:
    raise ValueError("there are no training rows to run the teacher on")
  size = min(rows_per_call, num_rows)
  out = np.empty((len(rows), coding.row_bytes(length)), np.uint8)
  bar = tqdm(
    range(rows.start - rows.start % size, rows.stop, size), desc="teacher", disable=not progress
  )
  # Calls begin at multiples of their size, whatever the rows, so that their draws are the same.
  for start in bar:
    taken = np.minimum(np.arange(start, start + size), num_rows - 1)
    batch = {name: np.asarray(values[taken]) for name, values in arrays.items()}
    key = jax.random.fold_in(jax.random.key(seed), start)
    found = to_host(encode(apply, params, coding, batch, key))
    first, last = max(start, rows.start), min(start + size, rows.stop)
    out[first - rows.start : last - rows.start] = found[first - start : last - start]
  return out


def write(
  folder: str | pathlib.Path,
  apply: Apply,
  params: Params,
  arrays: Mapping[str, np.ndarray],
  coding: Coding,
  *,
  about: Mapping[str, Any],
  seed: int = 0,
  rows_per_shard: int = 4096,
  rows_per_call: int = 64,
  part: tuple[int, int] = (0, 1),
  progress: bool = False,
) -> Iterable[int]:
  """Codes training rows into shards on disk; gives the number of each that it has written.

  Shards that are whole already are left alone, so that a stopped run goes on, and processes may
  share the work.

  Args:
    folder: where the shards go.
    apply: of the teacher.
    params: its parameters.
    arrays: training rows by name, `[R, L]`, among them `segments`.
    coding: what to keep.
    about: what else the index shall say, JSON.
    seed: of the draws.
    rows_per_shard: of every file.
    rows_per_call: rows of one compiled call.
    part: (i, n): this process writes every n-th shard from the i-th on.
    progress: whether to draw a progress bar of each shard.

  Raises:
    DataError: if the folder holds another cache, or its disk has not the room.
    ValueError: as `encode_rows`.
  """
  check(coding)
  folder = pathlib.Path(folder)
  layout = shards.Layout(*_shape(arrays, coding), rows_per_shard)
  index = {"coding": coding._asdict(), "length": arrays["segments"].shape[1], **about}
  if coding.samples:  # What the draws depend on besides the rows.
    index |= {"seed": seed, "rows_per_call": rows_per_call}
  own = set(range(layout.num_shards)[part[0] :: part[1]])
  options: dict[str, Any] = {"rows_per_call": rows_per_call, "progress": progress, "seed": seed}
  for shard in shards.start(folder, layout, index):
    if shard in own:
      rows = encode_rows(apply, params, arrays, coding, rows=layout.rows_of(shard), **options)
      shards.write(folder, layout, shard, rows)
      yield shard


def read(folder: str | pathlib.Path) -> tuple[Coding, shards.Rows]:
  """Opens a cache: how it is coded, and its rows, which index like an array.

  Raises:
    DataError: as `kdjax.data.shards.open_rows`.
  """
  rows = shards.open_rows(folder)
  try:
    known = dict(rows.about["coding"])
    features = tuple((name, tuple(shape)) for name, shape in known.pop("features"))
    coding = Coding(**known, features=features)
  except (KeyError, TypeError, ValueError) as error:
    raise shards.DataError(f"{folder}: not the cache of a teacher: {error}") from error
  return coding, rows


def _shape(arrays: Mapping[str, np.ndarray], coding: Coding) -> tuple[int, int]:
  num_rows, length = arrays["segments"].shape
  return num_rows, coding.row_bytes(length)


def _to_bytes(x: Array) -> Array:
  if x.dtype != jnp.uint8:
    x = jax.lax.bitcast_convert_type(x, jnp.uint8)
  return x.reshape(len(x), -1)


def _from_bytes(x: Array, dtype: Any, shape: tuple[int, ...]) -> Array:
  size = jnp.dtype(dtype).itemsize
  if size == 1:
    return x.reshape(len(x), *shape)
  return jax.lax.bitcast_convert_type(x.reshape(len(x), *shape, size), dtype)
