"""Which distillation loss helps a small SASRec most: equal budget, three seeds, real logs.

python -m benchmarks.loss_study --dataset=movielens-1m

Teacher and students alone are those of `benchmarks.recommenders`, trained here where its workdir
does not hold them yet. Every other student differs in its loss only. The weights below are first
values, to be chosen by the validation metric that is kept beside the test's. A stopped run goes on.
"""

import dataclasses
import json
import pathlib
from typing import Any

import numpy as np
from absl import app, flags

from benchmarks.recommenders import CONFIGS
from experiments import distill, train
from kdjax.train.writers import read_jsonl

FLAGS = flags.FLAGS
ROOT = pathlib.Path(__file__).resolve().parent

# Name in the table -> weight of the labels, and --distill_losses.
LOSSES: dict[str, tuple[float, tuple[str, ...]]] = {
  "KL": (0.2, ("kl:0.8",)),
  "RD": (1.0, ("ranking_distillation:0.5",)),
  "CD": (1.0, ("collaborative:0.5",)),
  "RRD": (1.0, ("relaxed_ranking:0.02",)),
  "DE": (1.0, ("experts:0.5",)),
  "FTD": (1.0, ("topology:10",)),
  "UnKD": (1.0, ("stratified_pair:0.5",)),
  "DLLM2Rec": (1.0, ("importance_ranking:0.5",)),
  "DE + RRD": (1.0, ("experts:0.5", "relaxed_ranking:0.02")),
  "KL + DE": (0.2, ("kl:0.8", "experts:0.5")),
}


def run(dataset: str, data: pathlib.Path, work: pathlib.Path) -> dict[str, Any]:
  """Trains what is missing, and sums up."""
  config = CONFIGS[dataset]
  log = dataclasses.replace(config.data, dataset=str(data / dataset))
  teacher = train.run(train.Config(log, config.teacher, config.teacher_fit), work / "teacher")
  # Every student learns in the same way, from its own first parameters.
  options = dataclasses.replace(config.distill, inherit_tables=False)
  results: dict[str, list[dict[str, Any]]] = {"alone": []} | {name: [] for name in LOSSES}
  for seed in config.seeds:
    fit = dataclasses.replace(config.student_fit, seed=seed)
    alone = work / f"alone-seed{seed}"
    results["alone"].append(read(train.run(train.Config(log, config.student, fit), alone), alone))
    for name, (label_weight, entries) in LOSSES.items():
      own = dataclasses.replace(options, label_weight=label_weight, distill_losses=entries)
      folder = work / "losses" / f"{name.replace(' ', '')}-seed{seed}"
      student = distill.Config((str(work / "teacher"),), log, config.student, own, fit)
      results[name].append(read(distill.run(student, folder), folder))
  return {
    "command": f"python -m benchmarks.loss_study --dataset={dataset}",
    "metric": teacher["metric"],
    "teacher": teacher["quality"][teacher["metric"]]["value"],
    "seeds": list(config.seeds),
    "losses": {
      name: {"label_weight": weight, "distill_losses": entries}
      for name, (weight, entries) in LOSSES.items()
    },
    "made_with": teacher["made_with"],
    "students": results,
  }


def read(result: dict[str, Any], folder: pathlib.Path) -> dict[str, float]:
  """What the table needs of one student."""
  epochs = len([line for line in read_jsonl(folder / "metrics.jsonl") if "train/loss" in line])
  return {
    "test": result["quality"][result["metric"]]["value"],
    "valid": result["training"]["best_valid"],
    "seconds_per_epoch": round(result["training"]["seconds"] / max(1, epochs), 2),
  }


def table(result: dict[str, Any]) -> str:
  """Mean, deviation, share of the gap to the teacher, seconds an epoch."""
  alone = np.mean([student["test"] for student in result["students"]["alone"]])
  lines = [
    f"| loss | test {result['metric']} (± standard deviation of {len(result['seeds'])} seeds) "
    "| gap recovered | seconds an epoch |",
    "|---|---:|---:|---:|",
    f"| teacher | {result['teacher']:.4f} | | |",
  ]
  for name, students in result["students"].items():
    values = np.array([student["test"] for student in students])
    share = (values.mean() - alone) / (result["teacher"] - alone)
    seconds = np.mean([student["seconds_per_epoch"] for student in students])
    deviation = values.std(ddof=1) if len(values) > 1 else float("nan")
    gap = "" if name == "alone" else f"{share:.0%}"
    lines.append(f"| {name} | {values.mean():.4f} ± {deviation:.4f} | {gap} | {seconds:.1f} |")
  return "\n".join(lines)


def main(argv):
  """Runs one log's study and keeps its results."""
  del argv
  name = FLAGS.dataset
  result = run(name, pathlib.Path(FLAGS.data), pathlib.Path(FLAGS.work) / name)
  out = ROOT / "results" / name
  out.mkdir(parents=True, exist_ok=True)
  (out / "losses.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
  (out / "losses.md").write_text(table(result) + "\n", encoding="utf-8")
  print(table(result))


if __name__ == "__main__":
  flags.DEFINE_enum("dataset", "movielens-1m", sorted(CONFIGS), "Which log.")
  flags.DEFINE_string("data", "../shared/data", "Folder that holds the logs' folders.")
  flags.DEFINE_string("work", "runs/benchmarks", "Folder of the runs themselves.")
  app.run(main)
