"""Rewrites the table of speeds in README.md from the result files.

python -m benchmarks.summary
"""

import json
import pathlib
from typing import Any

from absl import app

from kdjax import report

ROOT = pathlib.Path(__file__).resolve().parent

# What is measured, the script, and where its file keeps the ratio.
ROWS = (
  (
    "SASRec training, positions a second, amazon-video-games, against padded PyTorch on CPU",
    "train_throughput",
    ("times torch padded", "kdjax float32"),
  ),
  (
    "the same, against PyTorch that drops padding before the logits",
    "train_throughput",
    ("times torch gathered", "kdjax float32"),
  ),
  (
    "evaluation of all users, whole catalogue, movielens-1m, against a loop over users",
    "evaluate_catalog",
    ("logs", "movielens-1m", "times_faster"),
  ),
  (
    "the same, amazon-video-games",
    "evaluate_catalog",
    ("logs", "amazon-video-games", "times_faster"),
  ),
  (
    "catalogue cross-entropy, 16,384 tokens x 3,416 items, against dense JAX",
    "catalog_loss",
    ("cases", "cross_entropy", "speedup_float32"),
  ),
  (
    "catalogue KL, 1,024 tokens x 100,000 items, against dense JAX",
    "catalog_loss",
    ("cases", "kl_large_catalogue", "speedup_float32"),
  ),
  (
    "its extra memory, dense over blocked",
    "catalog_loss",
    ("cases", "kl_large_catalogue", "memory_ratio"),
  ),
  (
    "20 million rows of CSV, seconds, pandas over ours",
    "load_log",
    ("formats", "csv", "pandas_seconds_over_kdjax"),
  ),
)


def ratio(script: str, keys: tuple[str, ...]) -> float:
  """One figure of a script's result file."""
  value: Any = json.loads((ROOT / "results" / f"{script}.json").read_text(encoding="utf-8"))
  for key in keys:
    value = value[key]
  return float(value)


def table() -> str:
  """The Markdown table of all rows."""
  lines = ["| | ratio | script |", "|---|---:|---|"]
  for what, script, keys in ROWS:
    lines.append(f"| {what} | {ratio(script, keys):.1f} | `benchmarks.{script}` |")
  return "\n".join(lines)


def main(argv):
  """Rewrites the block, and says whether anything changed."""
  del argv
  changed = report.update_file(ROOT.parent / "README.md", {"speed": table()})
  print("README.md rewritten" if changed else "README.md is up to date")


if __name__ == "__main__":
  app.run(main)
