"""Which distillation loss helps a small SASRec most: equal budget, three seeds, real logs.

python -m benchmarks.loss_study --dataset=movielens-1m

One teacher, that of `benchmarks.recommenders`, trained here where its workdir does not hold it yet;
its queries are kept. Students differ in their loss only: each starts from its own first parameters
and trains for as many epochs. Weights are chosen on the validation items of the first seed, and the
test items judge the choice once. A stopped run goes on. `--only=KL,RD` trains the students of some
losses, so that processes can share the work; a run of all then sums up.
"""

import dataclasses
import pathlib
from typing import Any, NamedTuple

import numpy as np
from absl import app, flags
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from benchmarks import studies
from benchmarks.recommenders import CONFIGS, STUDENT_FIT
from experiments import distill, train
from experiments.config import ModelConfig
from kdjax.report import plots
from kdjax.train.writers import read_jsonl

FLAGS = flags.FLAGS

STUDENT = ModelConfig(dim=32, layers=1, heads=1, mlp_dim=32, dropout=0.0)
FIT = dataclasses.replace(STUDENT_FIT, epochs=10)


class Choice(NamedTuple):
  """Weights to try: of the labels, and --distill_losses."""

  label_weight: float
  distill_losses: tuple[str, ...]


def weighed(name: str, *weights: float, label_weight: float = 1.0) -> tuple[Choice, ...]:
  """One loss beside the labels, at some weights."""
  return tuple(Choice(label_weight, (f"{name}:{weight}",)) for weight in weights)


def together(weights: dict[str, float], *scales: float) -> tuple[Choice, ...]:
  """Losses with weights of their own, all scaled by one number, beside the labels."""
  return tuple(
    Choice(1.0, tuple(f"{name}:{weight * scale:g}" for name, weight in weights.items()))
    for scale in scales
  )


# The losses of the field as published: features are those of users (queries) and of items.
STUDIED: dict[str, tuple[Choice, ...]] = {
  "KL": tuple(Choice(round(1 - w, 2), (f"kl:{w}",)) for w in (0.5, 0.8, 1.0)),
  "RD": weighed("ranking_distillation", 0.1, 0.5, 2.0),
  "CD": weighed("collaborative", 0.5, 2.0),
  "RRD": weighed("relaxed_ranking", 0.003, 0.03),
  "DE": together({"experts@query": 1, "experts@item": 1}, 0.3, 3.0),
  "FTD": together({"topology@query": 1, "topology@item": 1}, 3.0, 30.0),
  "HTD": together({"group_topology@query": 1, "group_topology@item": 1}, 0.3, 3.0),
  "UnKD": weighed("stratified_pair", 0.5, 2.0),
  "DLLM2Rec": weighed("importance_ranking", 0.5, 2.0),
  "DE + RRD": together({"experts@query": 1, "experts@item": 1, "relaxed_ranking": 0.01}, 0.3, 3.0),
  "KL + DE": tuple(
    Choice(0.2, ("kl:0.8", f"experts@query:{w}", f"experts@item:{w}")) for w in (0.1, 1.0)
  ),
  "KL + RRD": tuple(Choice(0.2, ("kl:0.8", f"relaxed_ranking:{w}")) for w in (0.003, 0.01)),
}


def run(dataset: str, data: pathlib.Path, work: pathlib.Path, only: list[str]) -> dict[str, Any]:
  """Trains what is missing, of some losses or of all, and sums up."""
  config = CONFIGS[dataset]
  log = dataclasses.replace(config.data, dataset=str(data / dataset))
  model = dataclasses.replace(STUDENT, dropout=config.student.dropout)
  teacher = train.run(train.Config(log, config.teacher, config.teacher_fit), work / "teacher")
  batch = {name: getattr(config.student_fit, name) for name in ("batch_size", "accumulate")}
  options = dataclasses.replace(config.distill, inherit_tables=False)

  def student(name: str, number: int, choice: Choice | None, seed: int) -> dict[str, float]:
    fit = dataclasses.replace(FIT, seed=seed, **batch)
    folder = work / "losses" / f"{name.replace(' ', '')}-{number}-seed{seed}"
    if choice is None:
      return read(train.run(train.Config(log, model, fit), folder), folder)
    own = dataclasses.replace(options, **choice._asdict())
    return read(
      distill.run(distill.Config((str(work / "teacher"),), log, model, own, fit), folder), folder
    )

  first, *others = config.seeds
  students: dict[str, Any] = {"alone": [student("alone", 0, None, seed) for seed in config.seeds]}
  tuned = {}
  for name in only or STUDIED:
    choices = STUDIED[name]
    tried = [student(name, number, choice, first) for number, choice in enumerate(choices)]
    best = int(np.argmax([found["valid"] for found in tried]))
    tuned[name] = {
      "choices": [choice._asdict() for choice in choices],
      "valid": [found["valid"] for found in tried],
      "chosen": best,
    }
    students[name] = [tried[best]] + [student(name, best, choices[best], seed) for seed in others]
  return {
    "command": f"python -m benchmarks.loss_study --dataset={dataset}",
    "metric": teacher["metric"],
    "teacher": teacher["quality"][teacher["metric"]]["value"],
    "student": dataclasses.asdict(model),
    "fit": dataclasses.asdict(FIT) | batch,
    "seeds": list(config.seeds),
    "tuned": tuned,
    "made_with": teacher["made_with"],
    "students": students,
  }


def read(result: dict[str, Any], folder: pathlib.Path) -> dict[str, float]:
  """What the table needs; the fastest epoch neither compiles nor waits for other processes."""
  lines = read_jsonl(folder / "metrics.jsonl")
  clock = [line["seconds"] for line in lines if "train/loss" in line]
  return {
    "test": result["quality"][result["metric"]]["value"],
    "valid": result["training"]["best_valid"],
    "seconds_per_epoch": round(float(np.min(np.diff(clock))), 2),
  }


def of_loss(study: dict[str, Any], name: str) -> tuple[str, str, float]:
  """One loss of a study: quality and deviation, gap recovered, seconds of the fastest epoch."""
  students = study["students"]
  values, alone = (np.array([s["test"] for s in students[which]]) for which in (name, "alone"))
  deviation = values.std(ddof=1) if len(values) > 1 else float("nan")
  share = (values.mean() - alone.mean()) / (study["teacher"] - alone.mean())
  seconds = min(student["seconds_per_epoch"] for student in students[name])
  gap = "" if name == "alone" else f"{share:.0%}"
  return f"{values.mean():.4f} ± {deviation:.4f}", gap, seconds


def table(result: dict[str, Any]) -> str:
  """Mean, deviation, share of the gap to the teacher, seconds of the fastest epoch, the weights."""
  lines = [
    f"| loss | test {result['metric']} (± standard deviation of {len(result['seeds'])} seeds) "
    "| gap recovered | seconds, fastest epoch | labels and --distill_losses |",
    "|---|---:|---:|---:|---|",
    f"| teacher | {result['teacher']:.4f} | | | |",
  ]
  for name in result["students"]:
    quality, gap, seconds = of_loss(result, name)
    weights = ""
    if name != "alone":
      tuned = result["tuned"][name]
      choice = tuned["choices"][tuned["chosen"]]
      weights = f"{choice['label_weight']:g}, `{','.join(choice['distill_losses'])}`"
    lines.append(f"| {name} | {quality} | {gap} | {seconds:.1f} | {weights} |")
  return "\n".join(lines)


def plot(result: dict[str, Any], path: pathlib.Path) -> None:
  """Test quality of every seed and their mean, a line a loss, beside the teacher's."""
  figure = Figure(figsize=(7, 4.6), dpi=150, layout="constrained")
  FigureCanvasAgg(figure)
  axes = figure.add_subplot()
  for place, (name, students) in enumerate(result["students"].items()):
    values = np.array([student["test"] for student in students])
    colour = plots.COLOURS[1 if name == "alone" else 0]
    axes.plot(values, [place] * len(values), "o", color=colour, alpha=0.4, markersize=4)
    axes.plot(values.mean(), place, "D", color=colour, markersize=6)
    if name == "alone":
      axes.axvline(values.mean(), color=colour, linestyle=":", label="alone")
  axes.axvline(result["teacher"], color=plots.COLOURS[2], linestyle="--", label="teacher")
  axes.set_yticks(range(len(result["students"])), list(result["students"]))
  axes.invert_yaxis()
  axes.set_xlabel(f"test {result['metric']}: each seed, and the mean")
  axes.grid(alpha=0.3, axis="x")
  axes.legend(frameon=False)
  figure.savefig(path)


def main(argv):
  """Runs one log's study and keeps its results."""
  del argv
  result = run(*studies.places(), FLAGS.only)
  if FLAGS.only:
    print(table(result))
  else:
    studies.keep("losses", result, table(result), plot)


if __name__ == "__main__":
  studies.define_flags(CONFIGS, "movielens-1m")
  flags.DEFINE_list("only", [], "Train for these losses alone, and keep no table.")
  flags.register_validator(
    "only",
    lambda names: set(names) <= set(STUDIED),
    f"--only: there are {', '.join(STUDIED)}",
  )
  app.run(main)
