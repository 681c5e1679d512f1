"""What the studies on real data share: their flags, and where their results are kept."""

import json
import pathlib
import sys
from collections.abc import Callable, Iterable
from typing import Any

from absl import flags

FLAGS = flags.FLAGS
RESULTS = pathlib.Path(__file__).resolve().parent / "results"


def define_flags(datasets: Iterable[str], default: str) -> None:
  """--dataset, --data and --work, as flags of the script that runs."""
  of = {"module_name": sys.argv[0]}
  flags.DEFINE_enum("dataset", default, sorted(datasets), "Which data.", **of)
  flags.DEFINE_string("data", "../shared/data", "Folder that holds the datasets' folders.", **of)
  flags.DEFINE_string("work", "runs/benchmarks", "Folder of the runs themselves.", **of)


def places() -> tuple[str, pathlib.Path, pathlib.Path]:
  """What the flags say: the dataset, the folder of all data, the folder of the dataset's runs."""
  return FLAGS.dataset, pathlib.Path(FLAGS.data), pathlib.Path(FLAGS.work) / FLAGS.dataset


def keep(
  name: str,
  result: dict[str, Any],
  table: str,
  plot: Callable[[dict[str, Any], pathlib.Path], None],
) -> None:
  """Writes the result, its table and its plot into the dataset's folder, and prints the table."""
  out = RESULTS / FLAGS.dataset / name
  out.parent.mkdir(parents=True, exist_ok=True)
  out.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
  out.with_suffix(".md").write_text(table + "\n", encoding="utf-8")
  plot(result, out.with_suffix(".png"))
  print(table)
