"""Which of a student's parameters train: all, those that are not frozen, or low-rank adapters."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax

from experiments.config import FitConfig
from experiments.texts import FEATURES
from kdjax import lora, tree
from kdjax.types import Apply, Array, Params, Path, Select


class Student(NamedTuple):
  """What is trained of a student.

  Attributes:
    start: the tree that the optimizer sees, at step 0.
    frozen: `(path, leaf) -> bool`, which of its leaves stay; None where all train.
    counts: how many numbers are `trained` and `frozen`.
  """

  start: Params
  frozen: Select | None
  counts: dict[str, int]


def make_student(
  fit: FitConfig, params: Params, key: Array, *, fresh: Params | None = None
) -> Student:
  """What the flags say of training `params`.

  With --lora_rank the tree holds the params as `base` and the `adapters`; of the base only leaves
  that are `fresh` train, a new head above all.

  Args:
    fit: the flags.
    params: the student's at step 0.
    key: of the adapters.
    fresh: what was drawn for this run; a leaf that is still in `params` was not pretrained.

  Raises:
    ValueError: naming the flag that does not fit.
  """
  data = [name for name in params if name.startswith(FEATURES)]
  stays = named((*fit.freeze, *data), params, "freeze") if fit.freeze or data else None
  if not fit.lora_rank:
    return Student(params, stays, _count(params, stays))
  new = _still_in(params, fresh)
  adapters = _adapters(fit, params, new, key)

  def frozen(path: Path, leaf: Any) -> bool:
    if path[0] == "adapters":
      return False
    return path[1:] not in new or (stays is not None and stays(path[1:], leaf))

  start = {"base": params, "adapters": adapters}
  return Student(start, frozen, _count(start, frozen))


def merged(fit: FitConfig, params: Params) -> Params:
  """The student's own params from the tree that is trained."""
  if not fit.lora_rank:
    return params
  return lora.merge(params["base"], params["adapters"], scale=fit.lora_alpha / fit.lora_rank)


def through_adapters(fit: FitConfig, apply: Apply) -> Apply:
  """The model of the tree that is trained."""
  if not fit.lora_rank:
    return apply
  return lambda params, batch, *, key=None: apply(merged(fit, params), batch, key=key)


def describe(fit: FitConfig, student: Student) -> str:
  """How much trains, in a line; "" where all does."""
  if not student.counts["frozen"]:
    return ""
  counts = "{trained:,} parameters train, {frozen:,} stay as they are".format(**student.counts)
  return f"LoRA of rank {fit.lora_rank}: {counts}" if fit.lora_rank else counts


def _still_in(params: Params, fresh: Params | None) -> set[Path]:
  """The paths whose arrays are those drawn for this run, and not equal ones."""
  drawn = {} if fresh is None else dict(tree.leaves_with_path(fresh))
  new = {path for path, leaf in tree.leaves_with_path(params) if drawn.get(path) is leaf}
  if len(new) == len(jax.tree.leaves(params)):
    raise ValueError(
      "--lora_rank adapts a model that is trained already; give it by --checkpoint or --start"
    )
  return new


def _adapters(fit: FitConfig, params: Params, new: set[Path], key: Array) -> Params:
  """Adapters of the pretrained kernels that --lora_select names.

  Raises:
    ValueError: if it names none, or the rank fits none.
  """

  def holds(path: Path, part: str) -> bool:
    return f"/{part.strip('/')}/" in f"/{'/'.join(path)}/"

  def kernel(path: Path, leaf: Any) -> bool:
    return path not in new and lora.is_kernel(path, leaf)

  kernels = [path for path, leaf in tree.leaves_with_path(params) if kernel(path, leaf)]
  for part in fit.lora_select:
    if not any(holds(path, part) for path in kernels):
      known = ", ".join("/".join(path[:-1]) for path in kernels)
      raise ValueError(f"--lora_select={part}: there are {known}, and parts of those paths")

  def select(path: Path, leaf: Any) -> bool:
    asked = not fit.lora_select or any(holds(path, part) for part in fit.lora_select)
    return asked and kernel(path, leaf)

  try:
    return lora.init(params, key, rank=fit.lora_rank, select=select)
  except ValueError as error:
    raise ValueError(f"--lora_rank: {error}") from error


def named(prefixes: Sequence[str], params: Params, flag: str) -> Select:
  """Which leaves a flag names by the beginnings of their paths.

  Raises:
    ValueError: if a beginning is none of any path.
  """
  paths = ["/".join(path) for path, _ in tree.leaves_with_path(params)]

  def begins(path: str, prefix: str) -> bool:
    return path == prefix or path.startswith(prefix.rstrip("/") + "/")

  for prefix in prefixes:
    if not any(begins(path, prefix) for path in paths):
      known = sorted({path.split("/")[0] for path in paths})
      raise ValueError(f"--{flag}={prefix}: there are {', '.join(known)}, and parts of them")
  return lambda path, leaf: any(begins("/".join(path), prefix) for prefix in prefixes)


def _count(params: Params, frozen: Select | None) -> dict[str, int]:
  counts = {"trained": 0, "frozen": 0}
  for path, leaf in tree.leaves_with_path(params):
    stays = frozen is not None and frozen(path, leaf)
    counts["frozen" if stays else "trained"] += leaf.size
  return counts
