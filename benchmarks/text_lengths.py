"""Texts in batches of like length against padded ones: seconds an epoch, and accuracy.

python -m benchmarks.text_lengths --dataset=sst2

The same flags of `experiments.train` with and without --group_by_length, three seeds, a BERT of one
layer that starts fresh, with a tokenizer learned from the training texts. An epoch's seconds are
those of the run, validations included, without its first call, which compiles. A stopped run goes
on.
"""

import dataclasses
import json
import pathlib
from typing import Any

import numpy as np
from absl import app

from benchmarks import studies
from benchmarks.text_classification import FIT, STUDENTS
from experiments import problems, train
from experiments.config import DataConfig

SEEDS = (0, 1, 2)
EPOCHS = 5
SIDES = {"padded": False, "grouped": True}


def run(dataset: str, data: pathlib.Path, work: pathlib.Path) -> dict[str, Any]:
  """Trains what is missing, and compares."""
  texts = DataConfig(dataset=str(data / dataset), max_length=64)
  model = STUDENTS["BERT, 1 layer"]
  found: dict[str, list[dict[str, float]]] = {name: [] for name in SIDES}
  for seed in SEEDS:
    for name, grouped in SIDES.items():
      fit = dataclasses.replace(FIT, epochs=EPOCHS, seed=seed, group_by_length=grouped)
      folder = work / f"lengths-{name}-seed{seed}"
      result = train.run(train.Config(texts, model, fit), folder)
      training = result["training"]
      seconds = training["seconds"] - training["first_call_seconds"]
      accuracy = result["quality"]["accuracy"]["value"]
      found[name].append({"seconds_per_epoch": seconds / EPOCHS, "test_accuracy": accuracy})
  segments = np.asarray(problems.make_task(texts, "bert").arrays["segments"])
  epochs = {n: float(np.mean([x["seconds_per_epoch"] for x in runs])) for n, runs in found.items()}
  accuracies = {n: [x["test_accuracy"] for x in runs] for n, runs in found.items()}
  return {
    "command": f"python -m benchmarks.text_lengths --dataset={dataset}",
    "tokens of a text": float((segments > 0).sum(axis=1).mean()),
    "width of a padded row": segments.shape[1],
    "seconds_per_epoch": epochs,
    "times padded": epochs["padded"] / epochs["grouped"],
    "test_accuracy": {
      n: [float(np.mean(x)), float(np.std(x, ddof=1))] for n, x in accuracies.items()
    },
    "made_with": result["made_with"],
    "runs": found,
  }


def main(argv: list[str]) -> None:
  """Runs it and writes the result file."""
  del argv
  dataset, data, work = studies.places()
  result = run(dataset, data, work)
  out = studies.RESULTS / dataset / "text_lengths.json"
  out.parent.mkdir(parents=True, exist_ok=True)
  out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
  print(json.dumps({name: value for name, value in result.items() if name != "runs"}, indent=1))


if __name__ == "__main__":
  studies.define_flags(["sst2"], "sst2")
  app.run(main)
