"""Trains a student from a teacher: L = label_weight CE + distill_weight T^2 KL (+ hints).

python -m experiments.distill --workdir=runs/student --teacher=runs/teacher --dim=32
"""

import dataclasses
import pathlib
from typing import Any

from experiments import (
  caches,
  cli,
  families,
  fitting,
  logit_terms,
  loss_terms,
  meshes,
  problems,
  rankings,
  runs,
  shared_users,
  starts,
  stored,
)
from experiments.config import DataConfig, DistillConfig, FitConfig, ModelConfig
from experiments.loss_flags import loss_names
from experiments.tasks import Task
from kdjax import losses, models
from kdjax.flags import group, option
from kdjax.reduce import totals
from kdjax.train import teacher_cache
from kdjax.train.objective import Term


@dataclasses.dataclass(frozen=True)
class Config:
  """Options of experiments.distill."""

  teacher: tuple[str, ...] = option(
    (), "Workdir of the trained teacher, or of several; or Hugging Face checkpoint folders."
  )
  data: DataConfig = group(DataConfig)
  model: ModelConfig = group(ModelConfig, dim=32)
  distill: DistillConfig = group(DistillConfig)
  fit: FitConfig = group(FitConfig)


def run(config: Config, workdir: str | pathlib.Path) -> dict[str, Any]:
  """Distils, judges on the test part, and leaves the student and `result.json` in the workdir."""
  folder = runs.open_workdir(workdir, config)
  if (done := runs.finished(folder)) is not None:
    return done
  alone = config.distill.cached_rankings or config.distill.user_embeddings
  given = config.teacher or (() if alone or config.distill.teacher_cache else ("",))
  teachers = [
    stored.load_teacher(path, config.data, config.model.model, flag="--teacher", on_host=True)
    for path in given
  ]
  problems.describe_data(config.data, config.model.model, folder)
  task = problems.make_task(config.data, config.model.model)
  for teacher in teachers:
    own_tokens = needs_no_tokens(config.distill)
    stored.check_teacher(teacher, task, config.data, own_tokens=own_tokens)
  sizes = families.model_sizes(config.model, task)
  task, added = add_kept(task, config.distill, config.fit, config.data)
  num_teachers = len(teachers) or int(bool(config.distill.teacher_cache))
  terms = distill_terms(task, config.distill, config.fit, num_teachers=num_teachers)
  mesh = meshes.run_mesh(config.fit)
  inherit = lambda params: starts.start_from(  # noqa: E731
    config.model, config.data, sizes, params, mesh=mesh
  )
  if config.distill.inherit_tables and config.distill.teacher_cache:
    raise ValueError("--inherit_tables: --teacher_cache holds no tables; leave one of the two out")
  if config.distill.inherit_tables and teachers:
    if config.model.start:
      raise ValueError("--inherit_tables: tables start from --start already; give one of the two")
    inherit = lambda params: models.inherit_tables(params, teachers[0].params)  # noqa: E731
  fitted = fitting.fit_model(
    task,
    config.model.model,
    sizes,
    config.fit,
    folder,
    terms=terms + added,
    teachers=teachers,
    distill=config.distill,
    inherit=inherit,
    predicts=learns_predictions(config.distill),
    name=folder.name,
  )
  sizes, params = families.served(config.model, sizes, fitted.params)
  return runs.finish(
    "distill",
    folder,
    config.model.model,
    sizes,
    params,
    config.data,
    seed=config.fit.seed,
    training=fitting.summarise_training(fitted),
    mesh=mesh,
  )


def add_kept(
  task: Task, distill: DistillConfig, fit: FitConfig, data: DataConfig
) -> tuple[Task, list[Term]]:
  """The task with what teachers elsewhere left on disk beside its rows, and the terms on that."""
  task = caches.added(task, distill, fit, data)  # First: it compares the task's own rows.
  task, ranked = rankings.added(task, distill, fit, data)
  task, shared = shared_users.added(task, distill, data)
  return task, ranked + shared


def learns_predictions(distill: DistillConfig) -> bool:
  """Whether any term reads the student's predictions, and not its features alone."""
  if distill.label_weight or distill.cached_rankings:
    return True
  if distill.distill_losses:
    return loss_terms.read_predictions(distill.distill_losses)
  return bool(distill.distill_weight)


def distill_terms(
  task: Task, distill: DistillConfig, fit: FitConfig, *, num_teachers: int = 1
) -> list[Term]:
  """The terms that the flags ask for; a weight of 0 leaves its term out.

  Raises:
    ValueError: if no weight is positive, or the flags do not fit the task or the teachers.
  """
  check_flags(task, distill)
  if distill.distill_losses:
    labels = [task.label_term(fit, distill.label_weight)] if distill.label_weight else []
    counts = {"num_teachers": num_teachers, "num_steps": fitting.count_steps(task, fit)}
    return labels + task.flag_terms(distill, fit, **counts)
  if not num_teachers:  # --cached_rankings or --user_embeddings teach alone.
    return [task.label_term(fit, distill.label_weight)] if distill.label_weight else []
  if num_teachers > 1:
    raise ValueError(
      "--teacher: several teachers need --distill_losses, which says what to learn from each: "
      "kl#1:0.4,kl#2:0.4"
    )
  terms = []
  both = distill.label_weight and distill.distill_weight
  if both and (joint := task.joint_term(distill, fit)) is not None:
    terms.append(joint)
  else:
    if distill.label_weight:
      terms.append(task.label_term(fit, distill.label_weight))
    if distill.distill_weight:
      terms.append(task.distill_term(distill, fit))
  if distill.hint_weight:
    terms.append(hint_term(distill))
  if not terms:
    raise ValueError("--label_weight, --distill_weight and --hint_weight are all 0")
  return terms


def needs_no_tokens(distill: DistillConfig) -> bool:
  """Whether a teacher may read other tokens than the student."""
  return loss_names(distill.distill_losses) == {"universal_logit"}


def check_flags(task: Task, distill: DistillConfig) -> None:
  """Refuses flags that ask for what is not there.

  Raises:
    ValueError: naming the flag, and what would be right.
  """
  asked = loss_names(distill.distill_losses)
  if distill.teacher_cache and distill.cache_top_k:
    raise ValueError("--teacher_cache is there already; leave --cache_top_k out")
  kept = "--teacher_cache" * bool(distill.teacher_cache) or "--cache_top_k" * bool(
    distill.cache_top_k
  )
  if "policy" in asked and distill.sample_temperature != distill.temperature:
    raise ValueError(
      "--distill_losses: policy judges texts by the distribution that wrote them: give "
      f"--sample_temperature={distill.temperature:g}, as --temperature"
    )
  if distill.on_policy:
    if task.sampler is None:
      raise ValueError(f"--on_policy: the {task.name} task has no texts to write; leave it out")
    if kept:
      raise ValueError(
        f"--on_policy: what {kept} keeps is of the training texts alone, not of those that the "
        "student will write; leave one out"
      )
  if distill.sampled_rest and not (kept and task.name in ("sequence", "masked")):
    raise ValueError(
      "--sampled_rest is for sequence models that learn from a teacher's best: give --cache_top_k "
      "or --teacher_cache, or leave it out"
    )
  if kept:
    if task.name not in caches.TASKS:
      raise ValueError(f"{kept}: no fixed positions in the {task.name} task; leave it out")
    if distill.cache_queries:
      raise ValueError(f"{kept} and --cache_queries keep the same teacher; leave one out")
    best: tuple[str, ...] = logit_terms.OF_BEST
    features, hint = set[str](), bool(distill.hint_weight)
    if distill.teacher_cache:
      coding = teacher_cache.read(distill.teacher_cache)[0]
      best = logit_terms.OF_DRAWS if coding.samples else best
      if coding.samples and distill.sampled_rest:
        raise ValueError("--sampled_rest: --teacher_cache holds draws; make one without --samples")
      # A feature that was not kept is refused by its name.
      features, hint = set(loss_terms.OF_FEATURES), hint and not coding.features
    plain = not distill.distill_losses and (distill.distill_loss != "kl" or hint)
    if plain or asked - {*best} - features:
      raise ValueError(
        f"{kept} keeps enough for {', '.join(best)} of --distill_losses, or for --distill_loss=kl "
        "without a hint; leave it out for others"
      )


def hint_term(distill: DistillConfig) -> Term:
  """MSE between a student's projected feature and a teacher's, on the positions that exist."""
  student_name, _, teacher_name = distill.hint_features.partition(":")

  def pick(outputs, name, whose):
    if name not in outputs.features:
      known = ", ".join(sorted(outputs.features))
      raise ValueError(
        f"--hint_features={distill.hint_features}: the {whose} has no feature {name!r}; it has "
        f"{known}"
      )
    return outputs.features[name]

  def init(key, student, teacher):
    widths = (
      pick(student, student_name, "student").shape[-1],
      pick(teacher, teacher_name, "teacher").shape[-1],
    )
    return losses.projector(*widths).init(key)

  def loss(params, student, teacher, batch):
    own, other = student.features[student_name], teacher.features[teacher_name]
    projected = losses.projector(own.shape[-1], other.shape[-1]).apply(params, own)
    where = batch["segments"] > 0 if own.ndim == 3 else None
    return losses.hint_loss(projected, other, where=where, reduce_fn=totals)

  return Term("hint", loss, distill.hint_weight, init=init)


if __name__ == "__main__":
  cli.main(Config, run, None, several=True)
