"""Quality of students of a cached teacher beside those of the live one: same seeds, same flags.

python -m benchmarks.cached_quality --dataset=amazon-video-games

A SASRec teacher is trained once. Students learn from it by KL beside the labels, the teacher run in
every step (`live`), and the same from what `experiments.cache_teacher` writes: its best logits of
every position in bfloat16 with the exact mass of all others, which is another loss, where the rest
is one item (`cached`); or those and as many draws from the rest, whose gradients are the live ones
in expectation (`drawn`). Shuffles and first weights of a seed are the same for all. What is asked
is whether means of test NDCG@10 are within one standard error of their difference. Epochs and rates
are those of `benchmarks.loss_study`; nothing is tuned here. A stopped run goes on.
"""

import dataclasses
import json
import pathlib
from typing import Any

import numpy as np
from absl import app, flags

from benchmarks import studies
from benchmarks.loss_study import FIT, STUDENT
from benchmarks.recommenders import CONFIGS
from experiments import cache_teacher, distill, train
from experiments.config import DataConfig, DistillConfig, FitConfig, ModelConfig

SEEDS = (0, 1, 2)
LIVE, CACHED, DRAWN = "live", "cached", "drawn"
LABELS, KL = 0.2, 0.8
GAMES = "amazon-video-games"  # Not among the logs of `benchmarks.recommenders`.
GAMES_TEACHER = ModelConfig(dim=64, layers=2, heads=1, mlp_dim=128, dropout=0.5)
GAMES_FIT = FitConfig(
  epochs=12, batch_size=128, learning_rate=2e-3, schedule="cosine", weight_decay=0.01
)


def run(
  dataset: str, data: pathlib.Path, work: pathlib.Path, *, top_k: int, drawn: bool
) -> dict[str, Any]:
  """Trains what is missing, and compares."""
  if dataset == GAMES:
    log, model, fit = DataConfig(max_length=50), GAMES_TEACHER, GAMES_FIT
  else:
    config = CONFIGS[dataset]
    log, model, fit = config.data, config.teacher, config.teacher_fit
  log = dataclasses.replace(log, dataset=str(data / dataset))
  teacher = work / "teacher"
  taught = train.run(train.Config(log, model, fit), teacher)
  weights = DistillConfig(label_weight=LABELS, distill_weight=KL)
  own = {LIVE: ((str(teacher),), weights)}
  for name, samples in ((CACHED, 0), (DRAWN, top_k))[: 1 + drawn]:
    cache = work / (f"cache-{top_k}" + f"-drawn-{samples}" * bool(samples))
    cache_teacher.run(
      cache_teacher.Config(teacher=str(teacher), top_k=top_k, samples=samples, data=log), cache
    )
    own[name] = ((), dataclasses.replace(weights, teacher_cache=str(cache)))
  sides: dict[str, list[dict[str, float]]] = {name: [] for name in own}
  for seed in SEEDS:
    for name, (teachers, options) in own.items():
      small = dataclasses.replace(FIT, seed=seed)
      found = distill.run(
        distill.Config(teachers, log, STUDENT, options, small),
        work / f"cached-quality-{name}-{top_k}-seed{seed}",
      )
      sides[name].append({
        "seed": seed,
        "test": found["quality"]["ndcg@10"]["value"],
        "valid": found["training"]["best_valid"],
        "seconds": found["training"]["seconds"],
      })  # fmt: skip
  return {
    "command": f"python -m benchmarks.cached_quality --dataset={dataset}"
    + " --nodrawn" * (not drawn),
    "metric": "ndcg@10",
    "top_k": top_k,
    "teacher": {
      "test": taught["quality"]["ndcg@10"]["value"],
      "model": dataclasses.asdict(model),
      "fit": dataclasses.asdict(fit),
    },
    "student": dataclasses.asdict(STUDENT),
    "fit": dataclasses.asdict(FIT),
    "weights": {"labels": LABELS, "kl": KL},
    "made_with": found["made_with"],
    "sides": sides,
    "mean": {name: float(np.mean(tests(runs))) for name, runs in sides.items()},
    "deviation": {name: float(np.std(tests(runs), ddof=1)) for name, runs in sides.items()},
    "against live": {name: compare(sides[LIVE], sides[name]) for name in list(own)[1:]},
  }


def tests(runs: list[dict[str, float]]) -> np.ndarray:
  """Test quality of every seed."""
  return np.array([run["test"] for run in runs])


def compare(live: list[dict[str, float]], other: list[dict[str, float]]) -> dict[str, Any]:
  """How far the means are apart, and the standard error of that."""
  a, b = tests(live), tests(other)
  error = float(np.sqrt(a.var(ddof=1) / len(a) + b.var(ddof=1) / len(b)))
  apart = float(b.mean() - a.mean())
  return {
    "more than live": apart,
    "standard_error": error,
    "within_one_standard_error": abs(apart) <= error,
    "seed by seed": (b - a).tolist(),
  }


def main(argv: list[str]) -> None:
  """Runs one log and writes its result file."""
  del argv
  dataset, data, work = studies.places()
  options = flags.FLAGS
  result = run(dataset, data, work, top_k=options.top_k, drawn=options.drawn)
  out = studies.RESULTS / dataset / "cached_quality.json"
  out.parent.mkdir(parents=True, exist_ok=True)
  out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
  told = ("mean", "deviation", "against live")
  print(json.dumps({name: result[name] for name in told}, indent=1))


if __name__ == "__main__":
  studies.define_flags((*CONFIGS, GAMES), GAMES)
  flags.DEFINE_integer("top_k", 100, "Logits that are kept of a position.", lower_bound=1)
  flags.DEFINE_bool("drawn", True, "Also students of draws from the rest.")
  app.run(main)
