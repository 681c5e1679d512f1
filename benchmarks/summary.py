"""Rewrites the tables of README.md from the result files.

python -m benchmarks.summary
"""

import json
import pathlib
from typing import Any

from absl import app

from benchmarks import compression as compression_study
from benchmarks import loss_study, recommenders
from kdjax import report

ROOT = pathlib.Path(__file__).resolve().parent

LOGS = ("movielens-1m", "amazon-beauty", "movielens-small")
# Studies of texts, whose tables the README shows as their scripts wrote them.
TEXTS = {
  "sst2": "sst2/classification.md",
  "cranfield": "cranfield/search.md",
  "beauty-texts": "amazon-beauty/texts.md",
  "sst2-decoders": "sst2/decoder_distillation.md",
}
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
    "catalogue cross-entropy and KL in one sweep, 16,384 tokens x 3,416 items, against dense JAX",
    "catalog_loss",
    ("cases", "distillation", "speedup_float32"),
  ),
  (
    "catalogue KL, 1,024 tokens x 100,000 items, against dense JAX",
    "catalog_peers",
    ("race", "variants", "dense", "times_ours"),
  ),
  (
    "the same, against dense PyTorch on CPU",
    "catalog_peers",
    ("race", "variants", "torch", "times_ours"),
  ),
  (
    "the same, against Liger-Kernel's chunked loss on CPU",
    "catalog_peers",
    ("race", "variants", "liger", "times_ours"),
  ),
  (
    "its extra memory, dense JAX over ours",
    "catalog_peers",
    ("targets", "temporary memory, dense JAX over ours", "measured"),
  ),
  (
    "catalogue KL as compiled for an H100, bfloat16, 8,192 tokens x 128,256 items, 4,096 wide: "
    "extra memory, dense JAX over ours",
    "accelerators",
    ("chips", "H100", "language model", "kl", "ours", "times_less_memory"),
  ),
  (
    "the same with `block=2048`",
    "accelerators",
    ("chips", "H100", "language model", "kl", "lean", "times_less_memory"),
  ),
  (
    "as compiled for a TPU v5e, 8,192 tokens x 100,000 items, student 64 and teacher 128 wide",
    "accelerators",
    ("chips", "TPU v5e", "recommender", "kl", "ours", "times_less_memory"),
  ),
  (
    "its time, as that TPU's compiler expects it (nothing ran), dense JAX over ours",
    "accelerators",
    ("chips", "TPU v5e", "recommender", "kl", "ours", "times_dense"),
  ),
  (
    "positions distilled a second at 100,000 items, cached teacher against live and dense",
    "cached_distillation",
    ("times the first", "cached"),
  ),
  (
    "the same, with draws from the rest",
    "cached_distillation",
    ("times the first", "cached with draws"),
  ),
  (
    "the same, the student's rest sampled",
    "cached_distillation",
    ("times the first", "cached, rest sampled"),
  ),
  (
    "users trained a second, amazon-video-games, packed rows against padded ones",
    "packing",
    ("times padded",),
  ),
  (
    "wall time from the log amazon-video-games to a pruned int8 student, padded PyTorch over ours",
    "end_to_end",
    ("against torch", "amazon-video-games", "times ours", "torch plain"),
  ),
  (
    "the same, PyTorch that drops padding before the logits",
    "end_to_end",
    ("against torch", "amazon-video-games", "times ours", "torch gathered"),
  ),
  (
    "exponent of our wall time, from 100 thousand to a million users",
    "end_to_end",
    ("growth", "users", "exponents", "100,000 to 1,000,000"),
  ),
  (
    "the same, items",
    "end_to_end",
    ("growth", "items", "exponents", "100,000 to 1,000,000"),
  ),
  (
    "steps a second, table of 2 million rows, 1,024 pairs of 4 negatives, lazy against dense Adam",
    "lazy_rows",
    ("speed", "cases", "4 negatives", "times_faster"),
  ),
  (
    "the same with 64 negatives",
    "lazy_rows",
    ("speed", "cases", "64 negatives", "times_faster"),
  ),
  (
    "MiniLM, sentences of 128 tokens a second, against transformers on PyTorch, CPU",
    "text_speed",
    ("encoder", "128 tokens each", "times transformers"),
  ),
  (
    "the same, sentences of SST-2, PyTorch in batches as they come",
    "text_speed",
    ("encoder", "SST-2", "times transformers, as they come"),
  ),
  (
    "the same, PyTorch in batches sorted by length",
    "text_speed",
    ("encoder", "SST-2", "times transformers, sorted"),
  ),
  (
    "tokens a second of a decoder with a key-value cache, against transformers",
    "text_speed",
    ("decoder", "times transformers"),
  ),
  (
    "20 million rows of CSV, seconds, pandas over ours",
    "load_log",
    ("formats", "csv", "pandas_seconds_over_kdjax"),
  ),
  (
    "the same, peak memory over the columns read",
    "load_log",
    ("formats", "csv", "kdjax", "peak_over_columns"),
  ),
)


def ratio(script: str, keys: tuple[str, ...]) -> float:
  """One figure of a script's result file."""
  value: Any = json.loads((ROOT / "results" / f"{script}.json").read_text(encoding="utf-8"))
  for key in keys:
    value = value[key]
  return float(value)


def speeds() -> str:
  """The Markdown table of all rows."""
  lines = ["| | ratio | script |", "|---|---:|---|"]
  for what, script, keys in ROWS:
    found = ratio(script, keys)
    shown = f"{found:.1f}" if found >= 2 else f"{found:.2f}"
    lines.append(f"| {what} | {shown} | `benchmarks.{script}` |")
  return "\n".join(lines)


def compression() -> str:
  """The Markdown table of `claims`, a log a line."""
  lines = [
    "| log | seeds | kept of the teacher's NDCG@10 | times smaller | gain over alone | in standard "
    "errors | cost of int8 |",
    "|---|---:|---:|---:|---:|---:|---:|",
  ]
  for name in measured():
    result = read(name)
    found = recommenders.claims(result["rows"])
    lines.append(
      f"| {name} | {len(result['seeds'])} | {found['kept']:.1%} | {found['smaller']:.1f} "
      f"| {found['gain']:+.4f} | {found['gain_in_errors']:.1f} | {found['int8_cost']:.2%} |"
    )
  return "\n".join(lines)


def losses() -> str:
  """The Markdown table of the studies of losses: a loss a line, quality and gap recovered a log."""
  studies = {
    name: json.loads(path.read_text(encoding="utf-8"))
    for name in LOGS
    if (path := ROOT / "results" / name / "losses.json").exists()
  }
  if not studies:
    return ""
  heads = "".join(
    f" | {name}, test {study['metric']} | gap recovered | time of an epoch"
    for name, study in studies.items()
  )
  lines = [f"| loss{heads} |", "|---|" + "---:|---:|---:|" * len(studies)]
  teachers = "".join(f" | {study['teacher']:.4f} | | " for study in studies.values())
  lines.append(f"| teacher{teachers} |")
  for name in next(iter(studies.values()))["students"]:
    cells = []
    for study in studies.values():
      quality, gap, seconds = loss_study.of_loss(study, name)
      cells += [quality, gap, f"{seconds / loss_study.of_loss(study, 'alone')[-1]:.1f}"]
    lines.append(f"| {name} | {' | '.join(cells)} |")
  return "\n".join(lines)


def sparsity() -> str:
  """The Markdown table of the studies of compression: a variant a line, its quality on each log."""
  studies = {
    path.parent.name: json.loads(path.read_text(encoding="utf-8"))
    for path in sorted((ROOT / "results").glob("*/compression.json"))
  }
  if not studies:
    return ""
  heads = "".join(
    f" | {name}, test {study['metric']}, labels alone | with the teacher"
    for name, study in studies.items()
  )
  teachers = "".join(f" | {study['teacher']:.4f} | " for study in studies.values())
  lines = [f"| student{heads} |", "|---|" + "---:|---:|" * len(studies), f"| teacher{teachers} |"]
  for name in compression_study.names(next(iter(studies.values()))):
    found = [compression_study.cells(study, name)[:2] for study in studies.values()]
    cells = [cell for of_log in found for cell in of_log]
    lines.append(f"| {name} | {' | '.join(cells)} |")
  return "\n".join(lines)


def cached() -> str:
  """The Markdown table of students of cached teachers beside those of live ones, a log a line."""
  lines = [
    "| log | teacher | live | its best 100 and the mass of the rest | with draws from the rest |",
    "|---|---:|---:|---:|---:|",
  ]
  for path in sorted((ROOT / "results").glob("*/cached_quality.json")):
    result = json.loads(path.read_text(encoding="utf-8"))
    mean, deviation = result["mean"], result["deviation"]
    cells = [
      f"{mean[name]:.4f} ± {deviation[name]:.4f}" if name in mean else ""
      for name in ("live", "cached", "drawn")
    ]
    teacher = f"{result['teacher']['test']:.4f}"
    lines.append(f"| {path.parent.name} | {teacher} | {' | '.join(cells)} |")
  return "\n".join(lines)


def measured() -> list[str]:
  """The logs whose comparison has been run."""
  return [name for name in LOGS if (ROOT / "results" / name / "result.json").exists()]


def read(name: str) -> dict[str, Any]:
  """The result of one log's comparison."""
  return json.loads((ROOT / "results" / name / "result.json").read_text(encoding="utf-8"))


def blocks() -> dict[str, str]:
  """Every generated block of the README."""
  tables = {
    name: report.to_markdown(report.summarise(report.read_results([ROOT / "results" / name])))
    for name in ("demo", *measured())
  }
  if measured():
    tables["compression"] = compression()
  if studied := losses():
    tables["losses"] = studied
  if compressed := sparsity():
    tables["sparsity"] = compressed
  for name, file in TEXTS.items():
    if (path := ROOT / "results" / file).exists():
      tables[name] = path.read_text(encoding="utf-8").strip()
  return {"speed": speeds(), "cached": cached(), **tables}


def main(argv):
  """Rewrites the blocks, and says whether anything changed."""
  del argv
  changed = report.update_file(ROOT.parent / "README.md", blocks())
  print("README.md rewritten" if changed else "README.md is up to date")


if __name__ == "__main__":
  app.run(main)
