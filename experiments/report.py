"""Collects finished runs into one table with its plots, and rewrites the tables of Markdown files.

python -m experiments.report --workdir=runs/report --runs=runs/demo,runs/mine
python -m experiments.report --workdir=runs/report --runs=benchmarks/results/movielens-1m \\
  --markdown=README.md --block=movielens-1m
"""

import dataclasses
import pathlib
from typing import Any

from experiments import cli
from kdjax import report
from kdjax.flags import option


@dataclasses.dataclass(frozen=True)
class Config:
  """Options of experiments.report."""

  runs: tuple[str, ...] = option(
    (),
    "Workdirs (or result.json files) of finished runs; rows of one name are averaged over seeds.",
  )
  metric: str | None = option(None, "Which metric is the quality; each run's own by default.")
  markdown: str | None = option(None, "A Markdown file whose block is rewritten with the table.")
  block: str | None = option(None, "Name of that block: <!-- begin NAME --> ... <!-- end NAME -->.")


def run(config: Config, workdir: str | pathlib.Path) -> dict[str, Any]:
  """Writes table.md, table.csv and the plots that the rows allow."""
  if not config.runs:
    raise ValueError("--runs is empty; give the workdirs of finished runs")
  if (config.markdown is None) != (config.block is None):
    raise ValueError("--markdown and --block go together")
  folder = pathlib.Path(workdir)
  folder.mkdir(parents=True, exist_ok=True)
  rows = report.read_results(config.runs)
  table = report.summarise([{"name": row["workdir"], **row} for row in rows], metric=config.metric)
  text = report.to_markdown(table)
  (folder / "table.md").write_text(text + "\n", encoding="utf-8")
  (folder / "table.csv").write_text(report.to_csv(table), encoding="utf-8")
  report.plot_quality_against_bytes(table, folder / "quality_bytes.png")
  if any("latency_p50_ms" in row for row in table):
    report.plot_quality_against_latency(table, folder / "quality_latency.png")
  if config.markdown is not None and config.block is not None:
    report.update_file(config.markdown, {config.block: text})
  print(text)
  return {"job": "report", "table": table}


if __name__ == "__main__":
  cli.main(Config, run, "runs/report")
