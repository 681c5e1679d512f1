"""What sparsity, smaller arrays and fewer bits cost a small student, with and without its teacher.

python -m benchmarks.compression --dataset=mnist-10k

A student learns alone, and another from its teacher, over three seeds; every variant then starts
from it and trains for as many epochs, alone or from the teacher as before: masks of four sparsities
by three methods, arrays of a half and a quarter, weights of 8 and 4 bits rounded after training
(PTQ) or trained through (QAT). Nothing is tuned on the test part. A stopped run goes on.
`--only=2` trains the students of some seeds only, so that processes can share the work; a run of
all then sums up.
"""

import dataclasses
import itertools
import pathlib
from collections.abc import Iterable, Iterator
from typing import Any, Literal, NamedTuple

import numpy as np
from absl import app, flags
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from benchmarks import loss_study, recommenders, studies
from experiments import distill, evaluate, prune, quantize, train
from experiments.config import DataConfig, DistillConfig, FitConfig, ModelConfig, PruneConfig
from kdjax.report import plots

FLAGS = flags.FLAGS

SEEDS = (0, 1, 2)
SPARSITIES = (0.5, 0.75, 0.9, 0.95)
METHODS = ("one_shot", "cubic", "rigl")


class Setup(NamedTuple):
  """A dataset with its teacher and student."""

  data: DataConfig
  teacher: ModelConfig
  teacher_fit: FitConfig
  student: ModelConfig
  student_fit: FitConfig
  distill: DistillConfig
  recovery: FitConfig
  distribution: Literal["uniform", "erdos_renyi_kernel"]  # Of the sparsity over matrices.


class Variant(NamedTuple):
  """What is done to the student, and whether the teacher helps."""

  name: str
  taught: bool
  prune: PruneConfig
  train_bits: int = 0
  bits: int = 32

  @property
  def folder(self) -> str:
    """Of its training; rounding after training shares it."""
    bits = f"-train{self.train_bits}" if self.train_bits else ""
    plain = self.name.split(" int")[0].replace(" ", "-")
    return f"{plain}{bits}-{'taught' if self.taught else 'labels'}"


IMAGES_FIT = FitConfig(
  epochs=10, batch_size=64, learning_rate=3e-3, schedule="cosine", weight_decay=0.01
)
SETUPS = {
  "mnist-10k": Setup(
    DataConfig(dataset="mnist-10k"),
    ModelConfig("resnet", dim=16, layers=1, dropout=0.1),
    IMAGES_FIT,
    ModelConfig("resnet", dim=8, layers=1, dropout=0.0),
    IMAGES_FIT,
    DistillConfig(label_weight=0.3, distill_weight=0.7, temperature=4.0),
    # Chosen on validation images with the first seed: the narrow layers of a small ResNet bear no
    # uniform sparsity of 90 %, and small steps do not bring it back.
    dataclasses.replace(IMAGES_FIT, epochs=4, learning_rate=1e-2),
    "erdos_renyi_kernel",
  )
}
for _log in ("movielens-1m", "amazon-beauty"):
  _config = recommenders.CONFIGS[_log]
  SETUPS[_log] = Setup(
    _config.data,
    _config.teacher,
    _config.teacher_fit,
    dataclasses.replace(loss_study.STUDENT, dropout=_config.student.dropout),
    loss_study.FIT,
    _config.distill,
    dataclasses.replace(loss_study.FIT, epochs=3, learning_rate=2e-3),
    "uniform",
  )


def variants(distribution: Literal["uniform", "erdos_renyi_kernel"]) -> Iterator[Variant]:
  """All that is compared; the first two are the student trained on, whole."""
  for taught in (False, True):
    none = PruneConfig(sparsity=0.0)
    yield Variant("whole", taught, none)
    for sparsity, method in itertools.product(SPARSITIES, METHODS):
      options = PruneConfig(sparsity=sparsity, prune_method=method, prune_distribution=distribution)
      yield Variant(f"{method} {sparsity:.0%}", taught, options)
    for share in (0.5, 0.25):
      options = PruneConfig(sparsity=0.0, keep_dim=share, keep_mlp=share)
      yield Variant(f"arrays {share:.0%}", taught, options)
    for bits in (8, 4):
      yield Variant(f"whole int{bits} PTQ", taught, none, bits=bits)
      yield Variant(f"whole int{bits} QAT", taught, none, train_bits=bits, bits=bits)


def train_all(
  dataset: str, data: pathlib.Path, work: pathlib.Path, seeds: Iterable[int]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
  """Trains what is missing: the result of the teacher, and a row a student."""
  setup = SETUPS[dataset]
  log = dataclasses.replace(setup.data, dataset=str(data / dataset))
  teacher = work / "teacher"
  taught_by = train.run(train.Config(log, setup.teacher, setup.teacher_fit), teacher)
  rows = []
  for seed in seeds:
    fit = dataclasses.replace(setup.student_fit, seed=seed)
    bases = {
      taught: work / "compression" / f"student-{'taught' if taught else 'labels'}-seed{seed}"
      for taught in (False, True)
    }
    train.run(train.Config(log, setup.student, fit), bases[False])
    options = (log, setup.student, setup.distill, fit)
    distill.run(distill.Config((str(teacher),), *options), bases[True])
    for variant in variants(setup.distribution):
      recovery = dataclasses.replace(setup.recovery, seed=seed, train_bits=variant.train_bits)
      folder = work / "compression" / f"{variant.folder}-seed{seed}"
      helped_by = str(teacher) if variant.taught else ""
      config = prune.Config(
        str(bases[variant.taught]), helped_by, setup.distill, variant.prune, recovery
      )
      found = prune.run(config, folder)
      if variant.bits < 32:
        rounded = folder.with_name(f"{folder.name}-int{variant.bits}")
        config = quantize.Config(str(folder), bits=variant.bits, seed=seed)
        folder, found = rounded, quantize.run(config, rounded)
      rows.append(
        {
          "variant": variant.name,
          "taught": variant.taught,
          "seed": seed,
          "test": found["quality"][found["metric"]]["value"],
          "parameters": found["size"]["parameters"],
          "bytes": found["size"]["bytes"],
          "folder": folder,
        }
      )
  return taught_by, rows


def run(dataset: str, data: pathlib.Path, work: pathlib.Path) -> dict[str, Any]:
  """Trains what is missing, judges and times, and sums up."""
  setup = SETUPS[dataset]
  taught_by, rows = train_all(dataset, data, work, SEEDS)
  return {
    "command": f"python -m benchmarks.compression --dataset={dataset}",
    "metric": taught_by["metric"],
    "teacher": taught_by["quality"][taught_by["metric"]]["value"],
    "made_with": taught_by["made_with"],
    "setup": {
      name: dataclasses.asdict(value) if dataclasses.is_dataclass(value) else value
      for name, value in setup._asdict().items()
    },
    "seeds": list(SEEDS),
    "latency": latency(rows, SEEDS[0], work / "compression" / "timing"),
    "rows": [{k: v for k, v in row.items() if k != "folder"} for row in rows],
  }


def latency(rows: list[dict[str, Any]], seed: int, folder: pathlib.Path) -> dict[str, Any]:
  """Median and 99th percentile of one request, of what changes it: arrays and bits; in turns."""
  timed = {
    row["variant"]: str(row["folder"])
    for row in rows
    if row["seed"] == seed and row["taught"] and row["variant"].startswith(("whole", "arrays"))
  }
  if not timed:
    return {}
  config = evaluate.Config(tuple(timed.values()), tuple(timed), print_table=False)
  judged = evaluate.run(config, folder)["rows"]
  keys = ("latency_p50_ms", "latency_p99_ms", "throughput")
  return {row["name"]: {key: row["cost"][key] for key in keys} for row in judged}


def table(result: dict[str, Any]) -> str:
  """A row a variant: test quality on labels alone and with the teacher, MB, latency."""
  lines = [
    f"| student | {result['metric']}, labels alone | with the teacher | MB | p50, ms |",
    "|---|---:|---:|---:|---:|",
    f"| teacher | {result['teacher']:.4f} | | | |",
  ]
  lines += [f"| {name} | {' | '.join(cells(result, name))} |" for name in names(result)]
  return "\n".join(lines)


def names(result: dict[str, Any]) -> list[str]:
  """The variants, in the order in which they were run."""
  return list(dict.fromkeys(row["variant"] for row in result["rows"]))


def cells(result: dict[str, Any], name: str) -> list[str]:
  """Of a variant: quality on labels alone and with the teacher, MB, milliseconds of a request."""
  quality = (spread(result, name, taught) for taught in (False, True))
  size = np.mean([row["bytes"] for row in result["rows"] if row["variant"] == name]) / 1e6
  timed = result["latency"].get(name, {}).get("latency_p50_ms")
  shown = [f"{mean:.4f} ± {deviation:.4f}" for mean, deviation in quality]
  return [*shown, f"{size:.3f}", "" if timed is None else f"{timed:.3f}"]


def spread(result: dict[str, Any], name: str, taught: bool) -> tuple[float, float]:
  """Mean and standard deviation over seeds."""
  values = [
    row["test"] for row in result["rows"] if row["variant"] == name and row["taught"] == taught
  ]
  deviation = float(np.std(values, ddof=1)) if len(values) > 1 else float("nan")
  return float(np.mean(values)), deviation


def plot(result: dict[str, Any], path: pathlib.Path) -> None:
  """Quality against sparsity, a line a method, solid with the teacher."""
  known = names(result)
  figure = Figure(figsize=(7, 4.6), dpi=150, layout="constrained")
  FigureCanvasAgg(figure)
  axes = figure.add_subplot()
  for method, colour, marker in zip(METHODS, plots.COLOURS, plots.MARKERS, strict=False):
    for taught, line in ((True, "-"), (False, "--")):
      points = [(0.0, "whole")] + [(s, f"{method} {s:.0%}") for s in SPARSITIES]
      points = [(s, name) for s, name in points if name in known]
      found = [spread(result, name, taught) for _, name in points]
      axes.errorbar(
        [100 * s for s, _ in points],
        [mean for mean, _ in found],
        yerr=[deviation for _, deviation in found],
        color=colour,
        marker=marker,
        linestyle=line,
        capsize=3,
        label=f"{method}, {'with the teacher' if taught else 'labels alone'}",
      )
  axes.set_xlabel("sparsity, %")
  axes.set_ylabel(f"test {result['metric']}")
  axes.grid(alpha=0.3)
  axes.legend(frameon=False, fontsize=8, handlelength=4)
  figure.savefig(path)


def main(argv):
  """Runs one dataset's study and keeps its results."""
  del argv
  dataset, data, work = studies.places()
  if unknown := set(FLAGS.only) - set(map(str, SEEDS)):
    raise ValueError(f"--only: no seed {sorted(unknown)}; there are {', '.join(map(str, SEEDS))}")
  if FLAGS.only:
    train_all(dataset, data, work, map(int, FLAGS.only))
    return
  result = run(dataset, data, work)
  studies.keep("compression", result, table(result), plot)


if __name__ == "__main__":
  studies.define_flags(SETUPS, "mnist-10k")
  flags.DEFINE_list("only", [], "Seeds to train, without summing up; all when not given.")
  app.run(main)
