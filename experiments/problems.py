"""The data that the flags name, and the task that a family of models learns on it."""

import functools
import json
import pathlib
from typing import Any

from experiments import (
  clicks,
  files,
  images,
  language,
  masked_language,
  pairs,
  prepared,
  retrieval,
  sequences,
  speech,
  texts,
)
from experiments.config import DataConfig
from experiments.tasks import (
  CLICK_FAMILIES,
  IMAGE_FAMILIES,
  LANGUAGE_FAMILIES,
  PAIR_FAMILIES,
  SEARCH_FAMILIES,
  SEQUENCE_FAMILIES,
  SPEECH_FAMILIES,
  TEXT_FAMILIES,
  Task,
)
from kdjax.data import ids, interactions, sources, summary, synthetic
from kdjax.data.text import TextDataset
from kdjax.train import processes


@functools.lru_cache(maxsize=2)
def load_data(config: DataConfig) -> interactions.Dataset:
  """The prepared log; kept, so that the stages of one process read it once.

  Raises:
    DataError: naming file, line and mend.
  """
  return prepared.dataset(config, lambda: _read_log(config))


def _read_log(config: DataConfig) -> interactions.Dataset:
  if config.dataset == "synthetic":
    log = synthetic.generate(
      num_users=config.synthetic_users,
      num_items=config.synthetic_items,
      mean_length=config.synthetic_length,
      seed=config.data_seed,
    )
  else:
    log = sources.load(
      config.dataset,
      format=config.format,
      separator=config.separator,
      user_column=config.user_column,
      item_column=config.item_column,
      timestamp_column=config.timestamp_column,
      rating_column=config.rating_column,
      label_column=config.label_column,
      items_path=config.items_path,
    )
  return interactions.prepare(
    log,
    min_rating=config.min_rating,
    min_label_rating=config.label_threshold,
    k_core=config.k_core,
    deduplicate=config.deduplicate,
    min_sequence=config.min_sequence,
    split=config.split,
    valid_fraction=config.valid_fraction,
    test_fraction=config.test_fraction,
  )


@functools.lru_cache(maxsize=4)
def make_task(config: DataConfig, family: str) -> Task:
  """The task that a family learns on the configured data."""
  if family in IMAGE_FAMILIES:
    return images.make_task(images.load(config), config, family)
  if family in SPEECH_FAMILIES:
    return speech.make_task(speech.load(config), family)
  if family in SEARCH_FAMILIES:
    return retrieval.make_task(config, family)
  if config.objective == "masked" and family != "bert":
    raise ValueError(f"--objective=masked does not fit --model={family}; use bert")
  if family in (*TEXT_FAMILIES, *LANGUAGE_FAMILIES):
    found = _load_texts(config, family)
    if config.objective == "masked":
      return masked_language.make_task(found, config, family)
    make = texts.make_task if family in TEXT_FAMILIES else language.make_task
    return make(found, config, family)
  dataset = load_data(config)
  if family in SEQUENCE_FAMILIES:
    return sequences.make_task(dataset, config, family)
  if family in PAIR_FAMILIES:
    return pairs.make_task(dataset, config, family)
  assert family in CLICK_FAMILIES, family
  return clicks.make_task(dataset, config, family)


def label_names(config: DataConfig, family: str) -> tuple[str, ...]:
  """The classes that a family tells of texts, in the order of their numbers; none for others."""
  told = family in TEXT_FAMILIES and config.objective == "auto"
  return texts.load(config).classes if told else ()


def _load_texts(config: DataConfig, family: str) -> TextDataset:
  """The texts, with labels where they are to be told."""
  return texts.load(config, labels=family in TEXT_FAMILIES and config.objective == "auto")


def describe_data(config: DataConfig, family: str, workdir: pathlib.Path) -> None:
  """Saves what ids, tokens or characters stand for with the run; prints a summary once."""
  if not processes.is_first():
    return
  if (words := tokenizer_of(config, family)) is not None:
    texts.save_tokenizer(config, workdir, words)
  if family in SEARCH_FAMILIES:
    _print_once(retrieval.describe(retrieval.load(config)))
  elif family in (*TEXT_FAMILIES, *LANGUAGE_FAMILIES):
    _print_once(texts.describe(_load_texts(config, family)))
  elif family in IMAGE_FAMILIES:
    _print_once(images.describe(images.load(config)))
  elif family in SPEECH_FAMILIES:
    found = speech.load(config)
    with files.whole(workdir / "characters.json") as part:
      part.write_text(json.dumps(found.characters) + "\n", encoding="utf-8")
    _print_once(speech.describe(found))
  else:
    ids.save_ids(load_data(config), workdir / "ids")
    _print_once(summary.format_summary(load_data(config).summary))


def tokenizer_of(config: DataConfig, family: str) -> Any:
  """What makes tokens for a family of texts; None for others."""
  if family in SEARCH_FAMILIES:
    return retrieval.tokenizer(config)
  return texts.tokenizer(config) if family in (*TEXT_FAMILIES, *LANGUAGE_FAMILIES) else None


@functools.lru_cache
def _print_once(text: str) -> None:
  print(text, flush=True)
