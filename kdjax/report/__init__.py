"""Tables and plots from the `result.json` files of runs."""

from kdjax.report.plots import (
  plot_quality_against_bytes,
  plot_quality_against_latency,
  plot_training_curves,
)
from kdjax.report.rows import (
  ResultError,
  aggregate,
  flatten,
  gap_recovered,
  read_results,
  summarise,
)
from kdjax.report.table import (
  COLUMNS,
  Column,
  replace_block,
  three_digits,
  to_csv,
  to_markdown,
  update_file,
)

__all__ = [
  "COLUMNS",
  "Column",
  "ResultError",
  "aggregate",
  "flatten",
  "gap_recovered",
  "plot_quality_against_bytes",
  "plot_quality_against_latency",
  "plot_training_curves",
  "read_results",
  "replace_block",
  "summarise",
  "three_digits",
  "to_csv",
  "to_markdown",
  "update_file",
]
