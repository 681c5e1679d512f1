"""Logs in, histories and batches out."""

from kdjax.data.errors import DataError
from kdjax.data.ids import load_ids, save_ids
from kdjax.data.interactions import Dataset, Log, Sequences, Split, prepare
from kdjax.data.sources import load
from kdjax.data.summary import describe, format_summary
from kdjax.data.synthetic import generate

__all__ = [
  "DataError",
  "Dataset",
  "Log",
  "Sequences",
  "Split",
  "describe",
  "format_summary",
  "generate",
  "load",
  "load_ids",
  "prepare",
  "save_ids",
]
