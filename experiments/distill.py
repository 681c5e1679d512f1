"""Trains a student from a teacher: L = label_weight CE + distill_weight T^2 KL (+ hints).

python -m experiments.distill --workdir=runs/student --teacher=runs/teacher --dim=32
"""

import dataclasses
import pathlib
from typing import Any

from experiments import cli, fitting, loss_terms, runs, starts
from experiments.config import DataConfig, DistillConfig, FitConfig, ModelConfig
from experiments.tasks import Task
from kdjax import losses, models
from kdjax.flags import group, option
from kdjax.reduce import totals
from kdjax.train.objective import Term


@dataclasses.dataclass(frozen=True)
class Config:
  """Options of experiments.distill."""

  teacher: tuple[str, ...] = option((), "Workdir of the trained teacher, or of several.")
  data: DataConfig = group(DataConfig)
  model: ModelConfig = group(ModelConfig, dim=32)
  distill: DistillConfig = group(DistillConfig)
  fit: FitConfig = group(FitConfig)


def run(config: Config, workdir: str | pathlib.Path) -> dict[str, Any]:
  """Distils, judges on the test part, and leaves the student and `result.json` in the workdir."""
  folder = runs.open_workdir(workdir, config)
  if (done := runs.finished(folder)) is not None:
    return done
  teachers = [runs.load_model(path, flag="--teacher") for path in config.teacher or ("",)]
  runs.describe_data(config.data, config.model.model, folder)
  task = runs.make_task(config.data, config.model.model)
  for teacher in teachers:
    runs.check_teacher(teacher, task, config.data)
  sizes = runs.model_sizes(config.model, task)
  inherit = lambda params: starts.start_from(config.model, config.data, sizes, params)  # noqa: E731
  if config.distill.inherit_tables:
    if config.model.start:
      raise ValueError("--inherit_tables: tables start from --start already; give one of the two")
    inherit = lambda params: models.inherit_tables(params, teachers[0].params)  # noqa: E731
  fitted = fitting.fit_model(
    task,
    config.model.model,
    sizes,
    config.fit,
    folder,
    terms=distill_terms(task, config.distill, config.fit, num_teachers=len(teachers)),
    teachers=teachers,
    cache_queries=config.distill.cache_queries,
    inherit=inherit,
    predicts=learns_predictions(config.distill),
    name=folder.name,
  )
  return runs.finish(
    "distill",
    folder,
    config.model.model,
    sizes,
    fitted.params,
    config.data,
    seed=config.fit.seed,
    training=fitting.summarise_training(fitted),
  )


def learns_predictions(distill: DistillConfig) -> bool:
  """Whether any term reads the student's predictions, and not its features alone."""
  if distill.label_weight:
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
  if distill.distill_losses:
    labels = [task.label_term(fit, distill.label_weight)] if distill.label_weight else []
    counts = {"num_teachers": num_teachers, "num_steps": fitting.count_steps(task, fit)}
    return labels + task.flag_terms(distill, fit, **counts)
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
  cli.main(Config, run, None)
