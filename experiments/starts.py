"""Where a student's parameters start: fresh, from a checkpoint or from an earlier run."""

from collections.abc import Sequence
from typing import Any

from jax.sharding import Mesh

from experiments import problems, retrieval, stored, texts
from experiments.config import DataConfig, ModelConfig
from experiments.tasks import SEARCH_FAMILIES
from kdjax import models, tree
from kdjax.models.linen import Sizes
from kdjax.types import Params, Path


def start_from(
  model: ModelConfig,
  data: DataConfig,
  sizes: Sizes,
  params: Params,
  *,
  mesh: Mesh | None = None,
) -> Params:
  """Fresh params with what the flags say of pretrained ones; the rest are the very same arrays.

  A checkpoint's lie on the mesh, if there is one.
  """
  item_ids: Sequence[Any] = list(problems.load_data(data).item_ids) if model.item_embeddings else ()
  own = retrieval.as_text(model) if model.model in SEARCH_FAMILIES else model
  classes = problems.label_names(data, model.model)
  params = texts.start_from(own, sizes, params, item_ids, classes, mesh=mesh)
  return _from_run(model, data, sizes, params, mesh) if model.start else params


def _from_run(
  model: ModelConfig, data: DataConfig, sizes: Sizes, params: Params, mesh: Mesh | None
) -> Params:
  """What fits of the run --start, said in a line; on the host where a mesh will hold it.

  Raises:
    ValueError: if nothing does, or the run has seen what this one is tested on.
  """
  source = stored.load_model(model.start, flag="--start", on_host=mesh is not None)
  if (words := problems.tokenizer_of(data, model.model)) is not None:
    texts.check_tokenizer(data, source.folder, words)
  if changed := stored.other_split(source.data, data):
    raise ValueError(f"--start={model.start} was trained on another split of the data: {changed}")
  # Heads of two kinds may share names and shapes, but not what they are for.
  other_head = source.sizes.get("head") != sizes.get("head")

  def select(path: Path, leaf: Any) -> bool:
    del leaf
    return not (other_head and path[0] == "head")

  try:
    params, taken = models.inherit_leaves(params, source.params, select=select)
  except ValueError as error:
    raise ValueError(
      f"--start={model.start}: none of its arrays has a path and shape of this model; give the "
      "sizes it was trained with (--dim, --layers, ...; see its config.json)"
    ) from error
  paths = [path for path, _ in tree.leaves_with_path(params)]
  fresh = [path for path in paths if path not in taken]
  said = _shortened(fresh) if fresh else "none"
  print(
    f"--start={model.start}: {len(taken)} of {len(paths)} arrays are its own; others: {said}",
    flush=True,
  )
  return params


def _shortened(paths: Sequence[Path]) -> str:
  """The modules that the paths are of."""
  return ", ".join(dict.fromkeys("/".join(path[:-1]) or path[-1] for path in paths))
