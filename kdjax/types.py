"""The few types that every part of kdjax shares."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

Array = jax.Array
Params = Any  # Any pytree of arrays (or of objects with `__jax_array__`).
Batch = Mapping[str, Any]  # Arrays by name; `batch["teacher"]` may hold a cached teacher.
Path = tuple[str, ...]  # Keys from the root of a pytree to a leaf.
PAD = -1  # The item id of an empty position.
MASK = -2  # The item id of a position that a masked model must fill in.
Select = Callable[[Path, Any], bool]  # Whether a leaf takes part.


class Table(Protocol):
  """What may stand where a `[V, d]` table stands without being an array, such as a QTensor."""

  shape: tuple[int, ...]

  def rdot(self, query: Array) -> Array:
    """Contracts `query [..., d]` with every row: `[..., V]`."""
    ...

  def take(self, ids: Array) -> Array:
    """Rows at `ids [...]`, as float: `[..., d]`."""
    ...


class FactoredLogits(NamedTuple):
  """Logits over a catalogue in factored form, `logits = query @ table.T + bias`.

  A catalogue (or vocabulary) model returns this instead of a `[..., V]` array, so that losses,
  evaluation and serving can decide how much of it they ever materialise.

  Attributes:
    query: float `[..., d]`, one vector a request or position.
    table: float `[V, d]`, one row an item; or a `Table` (an int8 `QTensor`).
    bias: float `[V]` or None.

  Example:
    >>> import jax.numpy as jnp
    >>> logits = FactoredLogits(jnp.ones([2, 3]), jnp.eye(4, 3))
    >>> logits.dense().shape, float(logits.at(jnp.array([[3], [0]]))[1, 0])
    ((2, 4), 1.0)
  """

  query: Array
  table: Any
  bias: Array | None = None

  @property
  def num_items(self) -> int:
    """V, the size of the catalogue."""
    return self.table.shape[0]

  def dense(self) -> Array:
    """All logits: float32 `[..., V]`."""
    if hasattr(self.table, "rdot"):
      logits = self.table.rdot(self.query)
    else:
      logits = jnp.einsum("...d,vd->...v", self.query, self.table, preferred_element_type="float32")
    logits = logits.astype(jnp.float32)
    return logits if self.bias is None else logits + jnp.broadcast_to(self.bias, logits.shape)

  def rows(self, ids: Array) -> Array:
    """Rows of the table at `ids` int `[...]`: `[..., d]`."""
    return self.table.take(ids) if hasattr(self.table, "rdot") else self.table[ids]

  def at(self, ids: Array) -> Array:
    """Logits of candidates: `ids` int `[..., C]` (leading axes as `query`'s) to float32 `[..., C]`.

    Every id must lie in `[0, V)`.
    """
    rows = self.rows(ids)
    logits = jnp.einsum("...d,...cd->...c", self.query, rows, preferred_element_type="float32")
    logits = logits.astype(jnp.float32)
    return logits if self.bias is None else logits + self.bias[ids]


class Outputs(NamedTuple):
  """What a model returns.

  Attributes:
    logits: float `[..., C]` over classes, tokens or candidates, or `FactoredLogits`.
    features: every activation worth distilling, by name.
  """

  logits: Any
  features: Mapping[str, Array]


class Init(Protocol):
  """`init(key, batch) -> params`: fresh parameters for batches of this structure."""

  def __call__(self, key: Array, batch: Batch) -> Params: ...


class Apply(Protocol):
  """`apply(params, batch, *, key=None) -> Outputs`: a key given means training (dropout on)."""

  def __call__(self, params: Params, batch: Batch, *, key: Array | None = None) -> Outputs: ...


class Model(NamedTuple):
  """A model is a pair of pure functions, whatever framework they were written in."""

  init: Init
  apply: Apply


class Loss(Protocol):
  """A term of an objective: `(student_outputs, teacher_outputs, batch) -> loss`.

  Returns a scalar, or a `kdjax.reduce.Mean` so that devices and micro-batches merge exactly.
  """

  def __call__(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> Any: ...
