"""The main job on real logs, leave-one-out, every user against the whole catalogue.

python -m benchmarks.recommenders --dataset=movielens-1m

Trains the teacher once and the students over three seeds (`experiments.compress`), and copies the
result, the table and the plots to `benchmarks/results/<dataset>/`. Hyper-parameters are chosen on
the validation items only. A stopped run goes on.
"""

import dataclasses
import json
import pathlib
import shutil
from typing import Any

import numpy as np
from absl import app, flags

from experiments import compress
from experiments.config import DataConfig, DistillConfig, FitConfig, ModelConfig, PruneConfig

FLAGS = flags.FLAGS
ROOT = pathlib.Path(__file__).resolve().parent

LARGE = ModelConfig(dim=128, layers=2, heads=2, mlp_dim=256, dropout=0.2)
SMALL = ModelConfig(dim=80, layers=2, heads=1, mlp_dim=80, dropout=0.0)
TEACHER_FIT = FitConfig(
  epochs=45,
  learning_rate=2e-3,
  schedule="cosine",
  weight_decay=0.01,
  logits_dtype="bfloat16",
  accumulate=8,
)
STUDENT_FIT = dataclasses.replace(
  TEACHER_FIT, epochs=25, batch_size=64, learning_rate=3e-3, accumulate=4
)
RECOVERY_FIT = dataclasses.replace(STUDENT_FIT, epochs=12, learning_rate=2e-3)
DISTILL = DistillConfig(
  label_weight=0.2, distill_weight=0.8, cache_queries=True, inherit_tables=True
)
PRUNE = PruneConfig(sparsity=0.45)

# Folder of the log, longest history a model sees, and what differs from the above.
CONFIGS = {
  "movielens-1m": compress.Config(
    seeds=(0, 1, 2),
    alone_dropout=0.1,
    data=DataConfig(dataset="movielens-1m", max_length=200),
    teacher=LARGE,
    teacher_fit=TEACHER_FIT,
    student=SMALL,
    student_fit=STUDENT_FIT,
    distill=DISTILL,
    prune=PRUNE,
    recovery_fit=RECOVERY_FIT,
  ),
}
# Larger catalogues: more of the bytes are tables, so more of them must go.
SPARSER = PruneConfig(sparsity=0.55)
CONFIGS["amazon-beauty"] = dataclasses.replace(
  CONFIGS["movielens-1m"],
  data=DataConfig(dataset="amazon-beauty", max_length=50),
  teacher=dataclasses.replace(LARGE, dropout=0.5),
  student=dataclasses.replace(SMALL, dropout=0.2),
  alone_dropout=None,
  prune=SPARSER,
)
CONFIGS["movielens-small"] = dataclasses.replace(
  CONFIGS["movielens-1m"],
  data=DataConfig(dataset="movielens-small", max_length=200),
  teacher=dataclasses.replace(LARGE, dropout=0.5),
  student=dataclasses.replace(SMALL, dropout=0.2),
  alone_dropout=None,
  prune=SPARSER,
  # A tenth of the events: smaller batches, or there would be few steps.
  teacher_fit=dataclasses.replace(TEACHER_FIT, batch_size=16, accumulate=2),
  student_fit=dataclasses.replace(STUDENT_FIT, batch_size=16, accumulate=2, learning_rate=2e-3),
  recovery_fit=dataclasses.replace(RECOVERY_FIT, batch_size=16, accumulate=2),
)


def claims(rows: list[dict[str, Any]]) -> dict[str, float]:
  """What a comparison over seeds says of the int8 student.

  Args:
    rows: of `experiments.compress`: one of the teacher, one a seed of every other model.

  Returns:
    `kept`: its quality over the teacher's; `smaller`: the teacher's bytes over its; `gain`: its
    quality less that of the student alone, `gain_in_errors` in standard errors of that difference
    (two samples of unequal variance); `int8_cost`: the share of quality that int8 itself took.
  """

  def values(name, read):
    return np.array([read(row) for row in rows if row["name"] == name])

  def quality(name):
    return values(name, lambda row: row["quality"][row["metric"]]["value"])

  def size(name):
    return values(name, lambda row: row["size"]["bytes"])

  small, alone, pruned = quality("+ int8"), quality("alone"), quality("+ pruned")
  error = np.sqrt(np.var(small, ddof=1) / len(small) + np.var(alone, ddof=1) / len(alone))
  gain = small.mean() - alone.mean()
  return {
    "kept": float(small.mean() / quality("teacher").mean()),
    "smaller": float(size("teacher").mean() / size("+ int8").mean()),
    "gain": float(gain),
    "gain_in_errors": float(gain / error),
    "int8_cost": float(np.mean((pruned - small) / pruned)),
  }


def main(argv):
  """Runs one log's configuration and keeps its results."""
  del argv
  config = CONFIGS[FLAGS.dataset]
  path = pathlib.Path(FLAGS.data) / FLAGS.dataset
  config = dataclasses.replace(config, data=dataclasses.replace(config.data, dataset=str(path)))
  workdir = pathlib.Path(FLAGS.work) / FLAGS.dataset
  result = compress.run(config, workdir)
  out = ROOT / "results" / FLAGS.dataset
  out.mkdir(parents=True, exist_ok=True)
  # The path of the data says something of this machine only.
  result["config"]["data"]["dataset"] = FLAGS.dataset
  result["claims"] = claims(result["rows"])
  for name, value in result["claims"].items():
    print(f"{name:15s} {value:.4f}")
  made = json.loads((workdir / "teacher" / "result.json").read_text(encoding="utf-8"))
  result["made_with"] = made["made_with"]
  result["command"] = f"python -m benchmarks.recommenders --dataset={FLAGS.dataset}"
  (out / "result.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
  for name in ("table.md", "table.csv", "plots/quality_bytes.png", "plots/training.png"):
    shutil.copy(workdir / name, out / pathlib.Path(name).name)


if __name__ == "__main__":
  flags.DEFINE_enum("dataset", "movielens-1m", sorted(CONFIGS), "Which log.")
  flags.DEFINE_string("data", "../shared/data", "Folder that holds the logs' folders.")
  flags.DEFINE_string("work", "runs/benchmarks", "Folder of the runs themselves.")
  app.run(main)
