"""Judges BM25 on the test queries of a search collection: the baseline to beat.

python -m experiments.bm25 --workdir=runs/bm25 --dataset=path/to/collection

`experiments.report --runs=runs/bm25,runs/student` puts it beside the models.
"""

import dataclasses
import pathlib
from typing import Any

from experiments import cli, retrieval, runs
from experiments.config import DataConfig
from experiments.retrieval_rows import bm25_lists
from kdjax.flags import group

LISTED = 1000  # Documents of each query that are ranked.


@dataclasses.dataclass(frozen=True)
class Config:
  """Options of experiments.bm25."""

  data: DataConfig = group(DataConfig)


def run(config: Config, workdir: str | pathlib.Path) -> dict[str, Any]:
  """Ranks the documents that share a word with a query, and leaves `result.json`."""
  folder = runs.open_workdir(workdir, config)
  if (done := runs.finished(folder)) is not None:
    return done
  dataset = retrieval.load(config.data)
  print(retrieval.describe(dataset), flush=True)
  asked = [
    dataset.queries[query] for query in retrieval.judged_queries(config.data, "test").tolist()
  ]
  scores, ids = bm25_lists(config.data, asked, min(LISTED, len(dataset.documents)))
  judgement = retrieval.judge_lists(config.data, "test", scores, ids)
  result: dict[str, Any] = {
    "job": "bm25",
    "task": "search",
    "metric": retrieval.METRICS[0],
    "dataset": config.data.dataset,
    "quality": runs.keep_cases(folder, judgement),
    "cases": len(asked),
  }
  runs.write_result(folder, result)
  runs.print_quality(result["quality"])
  return result


if __name__ == "__main__":
  cli.main(Config, run, None)
