"""Trains a model on an interaction log: a teacher, or a student alone.

python -m experiments.train --workdir=runs/teacher --dataset=path/to/log --dim=128
"""

import dataclasses
import pathlib
from typing import Any

from experiments import cli, families, fitting, meshes, problems, runs, starts
from experiments.config import DataConfig, FitConfig, ModelConfig
from kdjax.flags import group


@dataclasses.dataclass(frozen=True)
class Config:
  """Options of experiments.train."""

  data: DataConfig = group(DataConfig)
  model: ModelConfig = group(ModelConfig)
  fit: FitConfig = group(FitConfig)


def run(config: Config, workdir: str | pathlib.Path) -> dict[str, Any]:
  """Trains, judges on the test part, and leaves the model and `result.json` in the workdir."""
  folder = runs.open_workdir(workdir, config)
  if (done := runs.finished(folder)) is not None:
    return done
  problems.describe_data(config.data, config.model.model, folder)
  task = problems.make_task(config.data, config.model.model)
  sizes = families.model_sizes(config.model, task)
  mesh = meshes.run_mesh(config.fit)
  fitted = fitting.fit_model(
    task,
    config.model.model,
    sizes,
    config.fit,
    folder,
    terms=[task.label_term(config.fit, 1.0)],
    inherit=lambda params: starts.start_from(config.model, config.data, sizes, params, mesh=mesh),
    name=folder.name,
  )
  sizes, params = families.served(config.model, sizes, fitted.params)
  return runs.finish(
    "train",
    folder,
    config.model.model,
    sizes,
    params,
    config.data,
    seed=config.fit.seed,
    training=fitting.summarise_training(fitted),
    mesh=mesh,
  )


if __name__ == "__main__":
  cli.main(Config, run, None, several=True)
