"""A small language model from one four times its size: SST-2's sentences, three seeds.

python -m benchmarks.decoder_distillation

The teacher is a decoder trained here, on a tokenizer learned here. Students differ in what they
learn from it only: each trains for as many epochs, from its own first parameters. Weights (and the
dropout of the student alone) are chosen by the likelihood of the validation texts on the first
seed; the test texts judge the choice once. A stopped run goes on. `--only=KL` trains some students
only, so that processes can share the work; a run of all then sums up. `--epochs=1` tries it out.
"""

import dataclasses
import pathlib
from typing import Any, NamedTuple

import numpy as np
from absl import app, flags
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from benchmarks import studies
from experiments import distill, evaluate, generate, train
from experiments.config import DataConfig, DistillConfig, FitConfig, ModelConfig
from kdjax.report import plots

FLAGS = flags.FLAGS

SEEDS = (0, 1, 2)
DATA = DataConfig(vocab_size=2000, max_length=48)
TEACHER = ModelConfig("decoder", dim=128, layers=4, heads=4, mlp_dim=256, dropout=0.2)
STUDENT = ModelConfig("decoder", dim=64, layers=2, heads=2, mlp_dim=128, dropout=0.1)
ALONE_DROPOUTS = (0.1, 0.2)
FIT = FitConfig(epochs=20, batch_size=64, learning_rate=2e-3, schedule="cosine", weight_decay=0.01)
ALONE = "alone"


class Choice(NamedTuple):
  """What to try: the weight of the labels, --distill_losses, and --on_policy."""

  label_weight: float
  loss: str
  on_policy: float = 0.0

  @property
  def config(self) -> DistillConfig:
    """As flags."""
    return DistillConfig(
      label_weight=self.label_weight,
      distill_losses=(self.loss,),
      on_policy=self.on_policy,
      prompt_tokens=4,
    )


STUDIED: dict[str, tuple[Choice, ...]] = {
  "KL": (Choice(0.5, "kl:0.5"), Choice(0.1, "kl:0.9")),
  "reverse KL": (Choice(0.5, "reverse_kl:0.5"), Choice(0.1, "reverse_kl:0.9")),
  # A quarter of KL's size where student and teacher are close.
  "JSD": (Choice(0.5, "jensen_shannon:2"), Choice(0.1, "jensen_shannon:3.6")),
  "skew KL": (Choice(0.5, "skew_kl:0.5"), Choice(0.1, "skew_kl:0.9")),
  "on-policy": (Choice(0.1, "kl:0.9", 0.3), Choice(0.1, "reverse_kl:0.9", 0.3)),
}


def run(dataset: str, data: pathlib.Path, work: pathlib.Path) -> dict[str, Any] | None:
  """Trains what is missing and, unless --only asks for a part, judges and times all."""
  work = work / "decoders"  # Beside the runs of `benchmarks.text_classification`.
  texts = dataclasses.replace(DATA, dataset=str(data / dataset))
  fit = dataclasses.replace(FIT, epochs=FLAGS.epochs)
  teacher = train.run(train.Config(texts, TEACHER, fit), work / "teacher")

  def student(name: str, number: int, seed: int) -> tuple[pathlib.Path, float]:
    """The workdir of a student, and how likely it finds the validation texts."""
    folder = work / f"{name.replace(' ', '-')}-{number}-seed{seed}"
    own = dataclasses.replace(fit, seed=seed)
    if name == ALONE:
      model = dataclasses.replace(STUDENT, dropout=ALONE_DROPOUTS[number])
      found = train.run(train.Config(texts, model, own), folder)
    else:
      choice = STUDIED[name][number].config
      config = distill.Config((str(work / "teacher"),), texts, STUDENT, choice, own)
      found = distill.run(config, folder)
    return folder, found["training"]["best_valid"]

  counts = {ALONE: len(ALONE_DROPOUTS)} | {name: len(tried) for name, tried in STUDIED.items()}
  if unknown := set(FLAGS.only) - set(counts):
    raise ValueError(f"--only: no {sorted(unknown)}; there are {', '.join(counts)}")
  folders, chosen = {}, {}
  for name in FLAGS.only or counts:
    tried = [student(name, number, SEEDS[0]) for number in range(counts[name])]
    best = int(np.argmax([value for _, value in tried]))
    folders[name] = [tried[best][0]] + [student(name, best, seed)[0] for seed in SEEDS[1:]]
    picked = {"dropout": ALONE_DROPOUTS[best]} if name == ALONE else STUDIED[name][best]._asdict()
    chosen[name] = {"choice": picked, "tried": [value for _, value in tried]}
  if FLAGS.only:
    return None
  paths = [work / "teacher", *(folder for of_one in folders.values() for folder in of_one)]
  names = ["teacher", *(name for name in folders for _ in SEEDS)]
  config = evaluate.Config(
    tuple(map(str, paths)), tuple(names), requests=50, batches=5, print_table=False
  )
  rows = evaluate.run(config, work / "evaluation")["rows"]
  speeds = {}
  for name, model in (("teacher", paths[0]), ("student", folders[ALONE][0])):
    options = generate.Config(
      str(model), count=512, prompt_tokens=4, texts_per_call=128, data=texts
    )
    speeds[name] = generate.run(options, work / f"written-by-{name}")["tokens_per_second"]
  return {
    "command": f"python -m benchmarks.decoder_distillation --dataset={dataset} "
    f"--epochs={FLAGS.epochs}",
    "seeds": list(SEEDS),
    "data": dataclasses.asdict(DATA),
    "models": {
      name: dataclasses.asdict(m) for name, m in (("teacher", TEACHER), ("student", STUDENT))
    },
    "fit": dataclasses.asdict(fit),
    "made_with": teacher["made_with"],
    "chosen": chosen,
    "written_tokens_per_second": speeds,
    "rows": rows,
  }


def perplexities(result: dict[str, Any], name: str) -> np.ndarray:
  """Of the test texts, one a seed."""
  rows = [row for row in result["rows"] if row["name"] == name]
  return np.array([row["quality"]["perplexity"]["value"] for row in rows])


def table(result: dict[str, Any]) -> str:
  """A row a model: perplexity, agreement with the teacher, MB, tokens read and written a second."""
  length = result["data"]["max_length"]
  lines = [
    "| model | test perplexity | gap recovered | ten likeliest tokens shared with the teacher | "
    "KL from the teacher, nats | MB | tokens read/s | tokens written/s |",
    "|---|---:|---:|---:|---:|---:|---:|---:|",
  ]
  teacher = float(perplexities(result, "teacher")[0])
  alone = perplexities(result, ALONE).mean()
  for name in dict.fromkeys(row["name"] for row in result["rows"]):
    rows, found = [r for r in result["rows"] if r["name"] == name], perplexities(result, name)
    is_teacher = name == "teacher"
    spread = "" if is_teacher else f" ± {found.std(ddof=1):.2f}"
    plain = is_teacher or name == ALONE
    gap = "" if plain else f"{(alone - found.mean()) / (alone - teacher):.0%}"
    agree = ["", ""]
    if not is_teacher:
      agree = [
        f"{np.mean([row['agreement'][key] for row in rows]):.3f}" for key in ("overlap@10", "kl")
      ]
    read = np.mean([row["cost"]["throughput"] for row in rows]) * length
    written = result["written_tokens_per_second"]["teacher" if is_teacher else "student"]
    size = rows[0]["size"]["bytes"] / 1e6
    cells = [f"{found.mean():.2f}{spread}", gap, *agree, f"{size:.2f}", f"{read:,.0f}"]
    lines.append(f"| {' | '.join([name, *cells, f'{written:,.0f}'])} |")
  return "\n".join(lines)


def plot(result: dict[str, Any], path: pathlib.Path) -> None:
  """Perplexity of every seed, beside the teacher's."""
  figure = Figure(figsize=(7, 3.4), dpi=150, layout="constrained")
  FigureCanvasAgg(figure)
  axes = figure.add_subplot()
  names = [ALONE, *STUDIED]
  for place, name in enumerate(names):
    values = perplexities(result, name)
    options: dict[str, Any] = {"color": plots.COLOURS[1 if name == ALONE else 0]}
    axes.plot(values, [place] * len(values), "o", alpha=0.5, markersize=4, **options)
    axes.plot(values.mean(), place, "D", markersize=6, **options)
  teacher = float(perplexities(result, "teacher")[0])
  axes.axvline(teacher, color=plots.COLOURS[2], linestyle="--", label="teacher")
  axes.set_yticks(range(len(names)), names)
  axes.invert_yaxis()
  axes.set_xlabel("test perplexity: each seed, and the mean")
  axes.grid(alpha=0.3, axis="x")
  axes.legend(frameon=False)
  figure.savefig(path)


def main(argv):
  """Runs the study and keeps its results."""
  del argv
  if (result := run(*studies.places())) is not None:
    studies.keep("decoder_distillation", result, table(result), plot)


if __name__ == "__main__":
  studies.define_flags(("sst2",), "sst2")
  flags.DEFINE_list("only", [], "Students to train, without summing up; all when not given.")
  flags.DEFINE_integer("epochs", FIT.epochs, "Of every training.", lower_bound=1)
  app.run(main)
