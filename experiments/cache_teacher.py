"""Runs a teacher over the training rows once and keeps on disk what students learn from.

python -m experiments.cache_teacher --workdir=runs/cache --teacher=runs/teacher --top_k=50

Then `python -m experiments.distill --teacher_cache=runs/cache`, with the same data flags, trains
students without the teacher. A stopped run goes on with the shards that are missing; several
processes share the work by --part=0/4, --part=1/4, ... A teacher that fits on no single device is
split by --model_devices or --fsdp_devices.
"""

import dataclasses
import pathlib
import re
from typing import Any, Literal

from experiments import caches, cli, families, meshes, problems, stored
from experiments.config import DataConfig, MeshConfig
from kdjax.flags import group, option
from kdjax.train import teacher_cache


@dataclasses.dataclass(frozen=True)
class Config:
  """Options of experiments.cache_teacher."""

  teacher: str = option(
    "", "Workdir of the trained teacher, or the folder of a Hugging Face decoder."
  )
  model: Literal["sasrec", "gru4rec", "decoder"] = option(
    "sasrec", "Family of the students: it decides what their training rows are."
  )
  top_k: int = option(50, "The best so many logits of every position.", lower=1)
  values: Literal["bfloat16", "int8", "float32"] = option(
    "bfloat16", "How they are coded; the mass of all of them is exact in each."
  )
  samples: int = option(
    0,
    "Draws from the rest of the catalogue: gradients of the KL are then those of the whole teacher "
    "in expectation. 0 keeps the rest's mass as one number.",
    lower=0,
  )
  features: tuple[str, ...] = option((), "Features of the teacher to keep, such as query.")
  temperature: float = option(1.0, "The --temperature that students will be given.", lower=1e-3)
  seed: int = option(0, "Of the draws.")
  rows_per_shard: int = option(4096, "Training rows of a file.", lower=1)
  rows_per_call: int = option(64, "Training rows of one call of the teacher.", lower=1)
  part: str = option("0/1", "i/n: this process writes every n-th file from the i-th on.")
  progress: bool = option(True, "Draw progress bars.")
  mesh: MeshConfig = group(MeshConfig)
  data: DataConfig = group(DataConfig)


def run(config: Config, workdir: str | pathlib.Path) -> dict[str, Any]:
  """Writes the shards that are missing; says how many, and how large all are."""
  part = _part(config.part)
  teacher = stored.load_teacher(
    config.teacher, config.data, config.model, flag="--teacher", on_host=True
  )
  task = problems.make_task(config.data, config.model)
  stored.check_teacher(teacher, task, config.data)
  mesh = meshes.mesh_of(config.mesh)
  apply = families.make_model(teacher.family, teacher.sizes).apply
  features = caches.feature_shapes(apply, teacher.params, task, config.features)
  apply, params = meshes.placed(apply, teacher.params, mesh)
  coding = teacher_cache.Coding(
    caches.num_classes(task),
    config.top_k,
    config.values,
    config.samples,
    config.temperature,
    features,
  )
  if not 1 <= coding.k <= coding.num_classes - bool(coding.samples):
    raise ValueError(f"--top_k={coding.k}: there are {coding.num_classes:,} to choose from")
  size = caches.describe(task, coding)
  written = list(
    teacher_cache.write(
      workdir,
      apply,
      params,
      task.arrays,
      coding,
      about=caches.about(task, config.data, config.model)
      | {"teacher": stored.fingerprint(teacher)},
      seed=config.seed,
      rows_per_shard=config.rows_per_shard,
      rows_per_call=config.rows_per_call,
      part=part,
      progress=config.progress,
    )
  )
  print(f"{len(written)} shards written to {workdir}", flush=True)
  return {"shards_written": len(written), "bytes": size}


def _part(text: str) -> tuple[int, int]:
  match = re.fullmatch(r"(\d+)/(\d+)", text)
  if match is None or int(match[1]) >= int(match[2]):
    raise ValueError(f"--part={text}: give i/n with i below n, such as 0/4")
  return int(match[1]), int(match[2])


if __name__ == "__main__":
  cli.main(Config, run, None)
