"""Texts that a language model writes, for another to learn from (sequence-level distillation).

python -m experiments.generate --workdir=runs/written --model_dir=runs/teacher \\
  --dataset=path/to/texts
python -m experiments.train --workdir=runs/student --model=decoder --dataset=runs/written \\
  --tokenizer=runs/written --text_column=text

The model continues the beginnings of the training texts. `train.parquet` holds what it wrote, with
the beginnings, and `valid.parquet` and `test.parquet` the texts that judge, as they are: the folder
is a dataset. A stopped run goes on.

Reference: Y. Kim, A. Rush, Sequence-Level Knowledge Distillation, EMNLP 2016, arXiv:1606.07947.
They take the best of a beam; here texts are drawn, or greedy.
"""

import dataclasses
import functools
import pathlib
import shutil
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import polars as pl
from tqdm.auto import tqdm

from experiments import cli, families, files, meshes, pretrained, runs, stored, texts
from experiments.config import DataConfig, LoadConfig
from kdjax.data.ends import find_ends, save_ends
from kdjax.data.tokens import encode, load_tokenizer, text_frame
from kdjax.flags import group, option
from kdjax.models import append, generate
from kdjax.train.on_policy import beginnings
from kdjax.types import Array, Batch, Params


@dataclasses.dataclass(frozen=True)
class Config:
  """Options of experiments.generate."""

  model_dir: str = option("", "Workdir of the trained decoder that writes.")
  checkpoint: str = option("", "Or a Hugging Face folder of one.")
  count: int = option(0, "Texts to write; 0 for as many as there are to train on.", lower=0)
  prompt_tokens: int = option(
    8, "Tokens of a training text that are given; the rest is written, up to --max_length.", lower=1
  )
  temperature: float = option(1.0, "Of the sampling; 0 for the likeliest token.", lower=0)
  top_k: int = option(0, "Draw from so many likeliest tokens; 0 for all.", lower=0)
  top_p: float = option(1.0, "Draw from the fewest likeliest tokens of this mass.", upper=1)
  texts_per_call: int = option(64, "Texts written at once.", lower=1)
  seed: int = option(0, "Which texts begin them, and what is drawn.")
  progress: bool = option(True, "Draw a progress bar.")
  load: LoadConfig = group(LoadConfig)
  data: DataConfig = group(DataConfig)


class Writer(NamedTuple):
  """Who writes.

  Attributes:
    go_on: `(rows, key) -> (tokens int [B, max_length], drawn int [B, new])`, compiled: the texts
      with what was written, and that alone; -1 where nothing is.
    tokenizer: of the model.
    stop: tokens of which any ends a text.
  """

  go_on: Callable[[Batch, Array], tuple[Array, Array]]
  tokenizer: Any
  stop: tuple[int, ...]


def run(config: Config, workdir: str | pathlib.Path) -> dict[str, Any]:
  """Writes the texts, and `result.json` with how many tokens they took, and how long."""
  folder = runs.open_workdir(workdir, config)
  if (done := runs.finished(folder)) is not None:
    return done
  if config.prompt_tokens >= config.data.max_length:
    raise ValueError(
      f"--prompt_tokens={config.prompt_tokens} leaves nothing of "
      f"--max_length={config.data.max_length} to write"
    )
  writer = load_writer(config)
  dataset = texts.load(config.data, labels=False)
  print(texts.describe(dataset), flush=True)
  (folder / texts.TOKENIZER_FILE).write_text(writer.tokenizer.to_str(), encoding="utf-8")
  save_ends(folder, writer.stop)
  given = list(dataset.parts["train"].texts)
  order = np.random.default_rng(config.seed).permutation(len(given))
  order = np.resize(order, config.count or len(given))
  starts = range(0, len(order), config.texts_per_call)
  parts = folder / "parts"
  parts.mkdir(exist_ok=True)
  calls: list[tuple[int, float]] = []
  for number, start in enumerate(tqdm(starts, desc=folder.name, disable=not config.progress)):
    path = parts / f"{number:06d}.parquet"
    if path.exists():
      continue
    # The last call has as many rows as all; what is written twice is left out.
    rows = np.resize(order[start : start + config.texts_per_call], config.texts_per_call)
    began = time.monotonic()
    table = write(config, writer, [given[i] for i in rows], number)
    calls.append((int(table["tokens"].sum()), time.monotonic() - began))
    files.write_table(path, table[: len(order) - start])
  whole = pl.concat([pl.read_parquet(path) for path in sorted(parts.glob("*.parquet"))])
  files.write_table(folder / "train.parquet", whole)
  for name in ("valid", "test"):
    files.write_table(
      folder / f"{name}.parquet", pl.DataFrame({"text": list(dataset.parts[name].texts)})
    )
  timed = calls[1:] or calls  # The first one compiles.
  rate = sum(n for n, _ in timed) / sum(s for _, s in timed) if timed else None
  result = {
    "job": "generate",
    "texts": len(whole),
    "tokens": int(whole["tokens"].sum()),
    "tokens_per_second": rate,
  }
  speed = f", {rate:,.0f} tokens/s" if rate is not None else ""
  print(f"{len(whole):,} texts, {result['tokens']:,} tokens written{speed}", flush=True)
  runs.write_result(folder, result)
  shutil.rmtree(parts)
  return result


def load_writer(config: Config) -> Writer:
  """The decoder that --model_dir or --checkpoint names, and its tokenizer.

  Raises:
    ValueError: naming the flag that does not fit.
  """
  if bool(config.model_dir) == bool(config.checkpoint):
    raise ValueError("give either --model_dir or --checkpoint: the decoder that writes")
  own = config.model_dir or config.data.tokenizer or config.checkpoint
  mesh = meshes.mesh_of(config.load.mesh)
  if config.model_dir:
    saved = stored.load_model(config.model_dir, flag="--model_dir")
    stored.check_split(saved, config.data, flag="--model_dir")
    flag, family, sizes, params = "--model_dir", saved.family, saved.sizes, saved.params
  else:
    found = pretrained.load(
      config.checkpoint,
      head="tokens",
      tokenizer=own,
      dtype=config.load.checkpoint_dtype,
      mesh=mesh,
    )
    flag, family, sizes, params = "--checkpoint", found.family, found.sizes, found.params
  if family != "decoder":
    raise ValueError(f"{flag}: a {family} writes no texts; give a decoder")
  tokenizer = load_tokenizer(own)
  cached = families.make_cached(sizes, pretrained.dtype_of(params))
  cached, params = meshes.placed_cached(cached, params, mesh)
  stop = find_ends(tokenizer, *filter(None, (own, config.checkpoint))).stop

  @jax.jit
  def go_on(params: Params, rows: Batch, key: Array) -> tuple[Array, Array]:
    prompts = beginnings(rows, key, prompt_tokens=config.prompt_tokens)
    drawn = generate(
      cached,
      params,
      prompts,
      key,
      max_new=config.data.max_length - config.prompt_tokens,
      temperature=config.temperature,
      top_k=config.top_k or None,
      top_p=config.top_p,
      stop=stop,
    )
    return append(prompts, drawn)["tokens"], drawn

  return Writer(functools.partial(go_on, params), tokenizer, stop)


def write(config: Config, writer: Writer, given: list[str], number: int) -> pl.DataFrame:
  """The continued texts of one call, and how many tokens of each the model wrote."""
  length = config.data.max_length
  rows = encode(writer.tokenizer, given, max_length=length)
  # What ends a text is the model's to write.
  behind = len(text_frame(writer.tokenizer)[1])
  last = np.maximum(rows["segments"].sum(axis=1, keepdims=True) - behind, 1)
  rows["segments"] *= np.arange(length)[None] < last
  key = jax.random.fold_in(jax.random.key(config.seed), number)
  whole, drawn = jax.device_get(writer.go_on(rows, key))
  # Not every tokenizer leaves out what ends a text as it decodes.
  tokens = [row[(row >= 0) & ~np.isin(row, writer.stop)].tolist() for row in whole]
  return pl.DataFrame(
    {
      "text": writer.tokenizer.decode_batch(tokens, skip_special_tokens=True),
      "tokens": (drawn >= 0).sum(axis=1),
    }
  )


if __name__ == "__main__":
  cli.main(Config, run, None)
