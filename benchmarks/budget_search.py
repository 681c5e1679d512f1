"""The smallest model under three budgets, on a real log: what `experiments.compress` searches for.

python -m benchmarks.budget_search --dataset=amazon-beauty

One teacher, that of `benchmarks.recommenders`, and one workdir: what a budget trains serves the
next. Validation decides; the test items judge every model once. A stopped run goes on.
"""

import dataclasses
import pathlib
from typing import Any

from absl import app
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from benchmarks import loss_study, studies
from benchmarks.recommenders import CONFIGS
from experiments import compress, train
from experiments.config import PruneConfig
from experiments.search import SearchConfig
from kdjax.report import plots

SPACE = SearchConfig(
  search_dims=(16, 32, 64),
  search_layers=(1, 2),
  search_sparsities=(0.0, 0.5),
  search_bits=(32, 8, 4),
)
BUDGETS = {
  "small": dict(max_mb=0.2, max_quality_drop=0.25),
  "medium": dict(max_mb=0.5, max_quality_drop=0.1),
  "large": dict(max_mb=1.0, max_p99_ms=3.0, max_quality_drop=0.02),
}


def run(dataset: str, data: pathlib.Path, work: pathlib.Path) -> dict[str, Any]:
  """Searches under every budget in turn, and sums up."""
  config = CONFIGS[dataset]
  log = dataclasses.replace(config.data, dataset=str(data / dataset))
  teacher = work / "teacher"
  taught = train.run(train.Config(log, config.teacher, config.teacher_fit), teacher)
  fit = dataclasses.replace(
    loss_study.FIT,
    batch_size=config.student_fit.batch_size,
    accumulate=config.student_fit.accumulate,
  )
  base = dataclasses.replace(
    config,
    teacher_dir=str(teacher),
    seeds=(0,),
    data=log,
    student=dataclasses.replace(loss_study.STUDENT, dropout=config.student.dropout, mlp_dim=None),
    student_fit=fit,
    distill=dataclasses.replace(config.distill, inherit_tables=False),
    prune=PruneConfig(),
    recovery_fit=dataclasses.replace(fit, epochs=3, learning_rate=2e-3),
  )
  found = {}
  for name, limits in BUDGETS.items():
    asked = dataclasses.replace(base, limits=dataclasses.replace(SPACE, **limits))
    result = compress.run(asked, work / "search")
    keys = ("limits", "steps", "chosen", "missed", "left", "frontier", "rows", "teacher_valid")
    found[name] = {key: result[key] for key in keys}
  return {
    "command": f"python -m benchmarks.budget_search --dataset={dataset}",
    "metric": result["metric"],
    "space": {k: v for k, v in dataclasses.asdict(SPACE).items() if k.startswith("search")},
    "student_fit": dataclasses.asdict(fit),
    "recovery_epochs": base.recovery_fit.epochs,
    "made_with": taught["made_with"],
    "budgets": found,
  }


def table(result: dict[str, Any]) -> str:
  """A line a budget: its limits, the steps of all budgets, and the model that was chosen."""
  metric = result["metric"]
  lines = [
    f"| budget | limits | steps of all budgets | smallest within them | MB | p99, ms "
    f"| lost of validation {metric} | test {metric} |",
    "|---|---|---:|---|---:|---:|---:|---:|",
  ]
  rows = next(iter(result["budgets"].values()))["rows"]
  teacher = next(row for row in rows if row["name"] == "teacher")
  lines.append(
    f"| | teacher | | | {teacher['size']['bytes'] / 1e6:.3f} "
    f"| {teacher['cost']['latency_p99_ms']:.2f} | | {quality(teacher):.4f} |"
  )
  for name, found in result["budgets"].items():
    limits = ", ".join(f"{k}={v:g}" for k, v in found["limits"].items() if v is not None)
    row = next((row for row in found["rows"] if row["name"] == found["chosen"]), None)
    if row is None:
      lines.append(
        f"| {name} | {limits} | {found['steps']:,} | none: {found['missed'][0]} | | | | |"
      )
      continue
    said = row["search"]
    lines.append(
      f"| {name} | {limits} | {found['steps']:,} | {row['name']} | {said['bytes'] / 1e6:.3f} "
      f"| {said['p99_ms']:.2f} | {said['drop']:.1%} | {quality(row):.4f} |"
    )
  return "\n".join(lines)


def quality(row: dict[str, Any]) -> float:
  """The test metric."""
  return row["quality"][row["metric"]]["value"]


def plot(result: dict[str, Any], path: pathlib.Path) -> None:
  """Validation quality lost against bytes: all trials, the frontier, the chosen ones."""
  figure = Figure(figsize=(7, 4.6), dpi=150, layout="constrained")
  FigureCanvasAgg(figure)
  axes = figure.add_subplot()
  trials = {
    row["name"]: row["search"]
    for found in result["budgets"].values()
    for row in found["rows"]
    if "search" in row
  }
  for bits, colour, marker in zip((32, 8, 4), plots.COLOURS, plots.MARKERS, strict=False):
    of = [t for name, t in trials.items() if bits_of(name) == bits]
    axes.plot(
      [t["bytes"] / 1e6 for t in of],
      [100 * t["drop"] for t in of],
      marker,
      color=colour,
      alpha=0.6,
      label=f"{bits} bits",
    )
  best = sorted((t["bytes"] / 1e6, 100 * t["drop"]) for t in trials.values())
  steps = [p for i, p in enumerate(best) if all(p[1] < q[1] for q in best[:i])]
  axes.plot(*zip(*steps, strict=True), "-", color="black", linewidth=1, label="frontier")
  for name, found in result["budgets"].items():
    if found["chosen"]:
      chosen = trials[found["chosen"]]
      axes.annotate(
        name,
        (chosen["bytes"] / 1e6, 100 * chosen["drop"]),
        xytext=(8, 8),
        textcoords="offset points",
        arrowprops={"arrowstyle": "-"},
      )
  axes.set_xscale("log")
  axes.set_xlabel("MB on disk")
  axes.set_ylabel(f"validation {result['metric']} lost against the teacher, %")
  axes.grid(alpha=0.3)
  axes.legend(frameon=False)
  figure.savefig(path)


def bits_of(name: str) -> int:
  """Of a trial, from its name."""
  return int(name.rsplit("-int", 1)[1]) if "-int" in name else 32


def main(argv):
  """Runs one log's searches and keeps their results."""
  del argv
  result = run(*studies.places())
  studies.keep("search", result, table(result), plot)


if __name__ == "__main__":
  studies.define_flags(CONFIGS, "amazon-beauty")
  app.run(main)
