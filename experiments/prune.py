"""Prunes a trained student and lets it recover by distillation.

Structures first (layers, feed-forward width, heads, embedding dimensions: the arrays shrink), then
weights (by magnitude on a cubic schedule, or as --prune_method and --prune_criterion say) while the
student learns from its teacher.

python -m experiments.prune --workdir=runs/pruned --model_dir=runs/student --teacher=runs/teacher

A student may also start as the teacher itself, narrower and with fewer layers:

python -m experiments.prune --workdir=runs/half --model_dir=runs/teacher --teacher=runs/teacher \\
  --keep_layers=1 --keep_dim=0.5 --keep_mlp=0.5 --sparsity=0
"""

import dataclasses
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import optax

from experiments import cli, families, fitting, meshes, problems, runs, stored, texts
from experiments.config import DistillConfig, FitConfig, PruneConfig
from experiments.distill import add_kept, distill_terms, learns_predictions, needs_no_tokens
from kdjax import prune as pruning
from kdjax.flags import group, option
from kdjax.models.linen import Sizes
from kdjax.tree import is_matrix, leaves_with_path, under
from kdjax.types import Params, Path, Select


@dataclasses.dataclass(frozen=True)
class Config:
  """Options of experiments.prune."""

  model_dir: str = option("", "Workdir of the trained student.")
  teacher: str = option(
    "", "Its teacher, as of experiments.distill; without one it recovers on labels alone."
  )
  distill: DistillConfig = group(DistillConfig)
  prune: PruneConfig = group(PruneConfig)
  fit: FitConfig = group(FitConfig, epochs=20)


def run(config: Config, workdir: str | pathlib.Path) -> dict[str, Any]:
  """Prunes, recovers, judges on the test part, and leaves the model and `result.json`."""
  folder = runs.open_workdir(workdir, config)
  if (done := runs.finished(folder)) is not None:
    return done
  source = stored.load_model(config.model_dir, flag="--model_dir")
  task = problems.make_task(source.data, source.family)
  task, added = add_kept(task, config.distill, config.fit, source.data)
  teacher = None
  terms = [task.label_term(config.fit, config.distill.label_weight if added else 1.0)]
  if config.teacher:
    teacher = stored.load_teacher(
      config.teacher, source.data, source.family, flag="--teacher", on_host=True
    )
    own_tokens = needs_no_tokens(config.distill)
    stored.check_teacher(teacher, task, source.data, own_tokens=own_tokens)
  taught = bool(config.teacher or config.distill.teacher_cache)
  if taught:
    terms = distill_terms(task, config.distill, config.fit)
  params, sizes = shrink(source, config.prune)
  fitted = fitting.fit_model(
    task,
    source.family,
    sizes,
    config.fit,
    folder,
    terms=terms + added,
    teachers=() if teacher is None else (teacher,),
    distill=config.distill if taught else None,
    start=jax.tree.map(jnp.asarray, params),
    last=lambda num_steps: transform(config.prune, num_steps, config.fit.seed),
    # A student that is not yet as sparse as was asked for cannot be the best one.
    predicts=not taught or learns_predictions(config.distill),
    min_best=lambda num_steps: last_mask(config.prune, num_steps) + 1,
    name=folder.name,
  )
  training = fitting.summarise_training(fitted)
  training["sparsity"] = sparsity(fitted.params, selected(config.prune))
  return runs.finish(
    "prune",
    folder,
    source.family,
    sizes,
    fitted.params,
    source.data,
    seed=config.fit.seed,
    training=training,
    mesh=meshes.run_mesh(config.fit),
  )


def transform(
  config: PruneConfig, num_steps: int, seed: int
) -> optax.GradientTransformationExtraArgs:
  """The last link of the optimizer chain, on the student's leaves."""
  select = under("student", select=selected(config))
  distribution = {
    "uniform": pruning.uniform,
    "erdos_renyi_kernel": pruning.erdos_renyi_kernel,
    "global": pruning.global_sparsity,
  }[config.prune_distribution]
  if config.prune_method in ("rigl", "set"):
    if config.prune_criterion != "magnitude":
      raise ValueError(
        f"--prune_criterion={config.prune_criterion} does not fit --prune_method="
        f"{config.prune_method}, which removes the smallest weights; leave it out"
      )
    if config.prune_distribution == "global":
      raise ValueError(
        f"--prune_distribution=global does not fit --prune_method={config.prune_method}, whose "
        "matrices each keep as many weights throughout; use uniform or erdos_renyi_kernel"
      )
    return pruning.regrow(
      config.sparsity,
      every=config.mask_every,
      end=max(1, round(config.ramp * num_steps)),
      key=jax.random.key(seed),
      by_gradient=config.prune_method == "rigl",
      criterion=pruning.magnitude,  # The student is trained already.
      select=select,
      distribution=distribution,
    )
  end = last_mask(config, num_steps)
  if config.prune_method == "one_shot":
    schedule: pruning.Schedule = pruning.one_shot(config.sparsity, step=end)
  else:
    schedule = pruning.cubic(config.sparsity, start=0, end=end, every=config.mask_every)
  if config.prune_criterion == "magnitude":
    return pruning.prune(schedule, select=select, distribution=distribution)
  by_gradient = getattr(pruning, config.prune_criterion)
  return pruning.prune(
    schedule, gradient_criterion=by_gradient, select=select, distribution=distribution
  )


def last_mask(config: PruneConfig, num_steps: int) -> int:
  """The step, from 0, from which on the student is as sparse as it will be."""
  if not config.sparsity or config.prune_method in ("rigl", "set"):
    return 0
  if config.prune_method == "one_shot":
    # Gradients must be seen before they can be summed.
    return 0 if config.prune_criterion == "magnitude" else min(config.mask_every, num_steps - 1)
  return max(0, round(config.ramp * num_steps) - 1)


def selected(config: PruneConfig) -> Select:
  """Which of the student's leaves are masked."""

  def select(path: Path, leaf: Any) -> bool:
    if path[0].startswith(texts.FEATURES):
      return False
    return is_matrix(path, leaf) and (config.prune_tables or path[-1] != "embedding")

  return select


def sparsity(params: Params, select: Select) -> float:
  """The share of zeros among the selected leaves."""
  leaves = [leaf for path, leaf in leaves_with_path(params) if select(path, leaf)]
  return float(sum((leaf == 0).sum() for leaf in leaves) / sum(leaf.size for leaf in leaves))


def shrink(source: stored.SavedModel, config: PruneConfig) -> tuple[Params, Sizes]:
  """The model without its least important structures, and its new sizes.

  Raises:
    ValueError: naming the flag, if the family has no such structure.
  """
  shares = {
    "--keep_dim": config.keep_dim, "--keep_heads": config.keep_heads, "--keep_mlp": config.keep_mlp
  }  # fmt: skip
  old, sizes = source.params, source.sizes
  if config.keep_layers:
    old, sizes = _take_layers(source, config.keep_layers)
  if all(share == 1 for share in shares.values()):
    return old, sizes
  axes = families.axes_of(source.family, sizes)
  units = pruning.axis_sizes(old, axes)
  keep = {name: max(1, round(shares[flag_of(name)] * count)) for name, count in units.items()}
  for flag, share in shares.items():
    if share < 1 and flag not in map(flag_of, units):
      raise ValueError(f"{flag}={share}: a {source.family} has only {', '.join(sorted(units))}")
  scores = pruning.axis_scores(old, axes, pruning.magnitude(old))
  params = pruning.take_axes(old, axes, pruning.choose(scores, keep))
  return params, families.sizes_after(source.family, params, sizes)


# How they are named.
_LAYERS = {
  "sasrec": "block_",
  "bert4rec": "block_",
  "bert": "block_",
  "bi_encoder": "block_",
  "cross_encoder": "block_",
  "decoder": "block_",
  "gru4rec": "layer_",
}


def _take_layers(source: stored.SavedModel, layers: tuple[int, ...]) -> tuple[Params, Sizes]:
  if source.family not in _LAYERS:
    raise ValueError(f"--keep_layers: a {source.family} has no layers of one shape")
  try:
    params = pruning.take_layers(source.params, layers, prefix=_LAYERS[source.family])
  except ValueError as error:
    raise ValueError(f"--keep_layers={','.join(map(str, layers))}: {error}") from error
  return params, families.sizes_after(source.family, params, source.sizes)


def flag_of(axis: str) -> str:
  """Which flag says how much of an axis stays."""
  last = axis.rsplit("/", 1)[-1]
  if last == "heads":
    return "--keep_heads"
  return "--keep_dim" if "dim" in last else "--keep_mlp"


if __name__ == "__main__":
  cli.main(Config, run, None, several=True)
