"""Logs in, histories and batches out."""

from kdjax.data.batches import append_mask, epoch_order, history_batch, pack_rows, stream
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
  "append_mask",
  "describe",
  "epoch_order",
  "format_summary",
  "generate",
  "history_batch",
  "load",
  "load_ids",
  "pack_rows",
  "prepare",
  "save_ids",
  "stream",
]
