"""More training texts: copies in which some words are others that a masked model finds likely.

python -m experiments.augment_texts --workdir=runs/more --dataset=path/to/texts --copies=4 \\
  --model_dir=runs/pretrained

Writes `train.parquet`, the training texts and their copies with their labels, and the other two
parts as they are: `--dataset=runs/more` trains on them.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import polars as pl
from tqdm.auto import tqdm

from experiments import (
  cli,
  families,
  files,
  masked_language,
  meshes,
  prepared,
  pretrained,
  runs,
  stored,
  texts,
)
from experiments.config import DataConfig, LoadConfig
from kdjax import flags, serve
from kdjax.data.text import Texts
from kdjax.data.tokens import load_tokenizer, mask_id, ordinary_ids
from kdjax.flags import group, option
from kdjax.models.linen import Sizes
from kdjax.types import Apply, Array, Batch, Outputs, Params

CHUNK = 500  # Texts between two saves.
STARTS = "\u0120\u2581"  # How tokens begin that stand after a space, in tokenizers that mark it.


@dataclasses.dataclass(frozen=True)
class Config:
  """Options of experiments.augment_texts."""

  model_dir: str = option("", "Workdir of a bert trained with --objective=masked.")
  checkpoint: str = option(
    "", "Instead of it a Hugging Face checkpoint folder of a masked language model."
  )
  copies: int = option(4, "Copies of every training text.", lower=1)
  share: float = option(0.4, "Share of the words that a copy draws anew.", lower=0, upper=1)
  candidates: int = option(15, "Likeliest words that one is drawn from.", lower=1)
  seed: int = option(0, "Seed of which words, and of what they become.")
  tokens_per_call: int | None = option(
    None, "Positions of one call; what suits the device when not given.", lower=1
  )
  progress: bool = option(True, "Draw a progress bar.")
  load: LoadConfig = group(LoadConfig)
  data: DataConfig = group(DataConfig)


class Writer(NamedTuple):
  """What finds likely words.

  Attributes:
    likeliest: `(params, batch) -> Outputs` whose logits are float32 `[B, 2, k]`: the chances of the
      candidates in the place of the hidden token, and which tokens they are.
    params: of the model.
    tokenizer: of the model.
    kinds: of its tokens, as `word_kinds` gives them.
    length: tokens that it sees.
  """

  likeliest: Apply
  params: Params
  tokenizer: Any
  kinds: np.ndarray
  length: int


class Word(NamedTuple):
  """A word that may become another.

  Attributes:
    place: of its only token.
    start: of its letters in the text.
    stop: after its letters.
  """

  place: int
  start: int
  stop: int


def run(config: Config, workdir: str | pathlib.Path) -> dict[str, Any]:
  """Writes the three parts; a stopped run goes on."""
  folder = runs.open_workdir(workdir, config)
  if (done := runs.finished(folder)) is not None:
    return done
  writer = load_writer(config)
  dataset = texts.load(config.data)
  train = dataset.parts["train"]
  copies = _copies(writer, tuple(train.texts), config, folder)
  found, labels = list(train.texts), list(train.labels)
  for text, label, rewritten in zip(train.texts, train.labels, copies, strict=True):
    # A copy that came out as its text would only count that twice.
    new = [copy for copy in dict.fromkeys(rewritten) if copy != text]
    found += new
    labels += [label] * len(new)
  parts = {**dataset.parts, "train": Texts(tuple(found), np.array(labels))}
  for name, part in parts.items():
    classes = [dataset.classes[number] for number in part.labels]
    files.write_table(
      folder / f"{name}.parquet", pl.DataFrame({"text": part.texts, "label": classes})
    )
  flags.save(config.data, folder / prepared.MADE_FROM)
  result = {"job": "augment_texts", "texts": len(train.texts), "written": len(found)}
  print(f"{len(train.texts):,} training texts became {len(found):,}: --dataset={folder}")
  runs.write_result(folder, result)
  return result


def load_writer(config: Config) -> Writer:
  """The model that the flags name.

  Raises:
    ValueError: naming the flag, if it is no masked language model, or not one is given.
  """
  if bool(config.model_dir) == bool(config.checkpoint):
    raise ValueError("give one of --model_dir and --checkpoint, the masked language model")
  own = config.data.tokenizer or config.model_dir or config.checkpoint
  mesh = meshes.mesh_of(config.load.mesh)
  if config.model_dir:
    saved = stored.load_model(config.model_dir, flag="--model_dir")
    if saved.family != "bert" or saved.sizes.get("head") != "tokens":
      raise ValueError(
        f"--model_dir={config.model_dir} holds a {saved.family} that tells no hidden tokens; train "
        "a bert with --objective=masked"
      )
    sizes, params = saved.sizes, saved.params
  else:
    dtype = config.load.checkpoint_dtype
    found = pretrained.load(config.checkpoint, head="tokens", tokenizer=own, dtype=dtype, mesh=mesh)
    if found.family != "bert":
      raise ValueError(f"--checkpoint={config.checkpoint} is a {found.model_type}, no bert")
    sizes, params = found.sizes, found.params
  tokenizer = load_tokenizer(own)
  kinds = word_kinds(tokenizer)
  if len(kinds) > sizes["vocab_size"]:
    raise ValueError(
      f"--tokenizer={config.data.tokenizer} has {len(kinds):,} tokens, the model "
      f"{sizes['vocab_size']:,}; leave the flag out"
    )
  apply = families.make_model("bert", sizes, pretrained.dtype_of(params)).apply
  apply, params = meshes.placed(apply, params, mesh)
  likeliest = functools.partial(
    _likeliest, apply, kinds=kinds, hidden=mask_id(tokenizer), candidates=config.candidates
  )
  return Writer(likeliest, params, tokenizer, kinds, _length(config, sizes))


def _length(config: Config, sizes: Sizes) -> int:
  return min(config.data.max_length, sizes["max_length"] - sizes.get("position_offset", 0))


def _likeliest(
  apply: Apply,
  params: Params,
  batch: Batch,
  *,
  kinds: np.ndarray,
  hidden: int,
  candidates: int,
  key: Array | None = None,
) -> Outputs:
  """`Writer.likeliest` of a model of tokens; `batch["was"]` is what the hidden token was."""
  del key
  logits = masked_language.fill(apply, params, batch, hidden=hidden).dense()
  of_token, own = jnp.asarray(kinds), batch["was"][:, 0]
  alike = of_token[None] == of_token[own][:, None]
  others = jnp.arange(len(kinds))[None] != own[:, None]
  logits = jnp.where(alike & others, logits, -jnp.inf)
  values, ids = jax.lax.top_k(logits, min(candidates, len(kinds)))
  return Outputs(jnp.stack([jax.nn.softmax(values), ids.astype(jnp.float32)], axis=1), {})


def _copies(
  writer: Writer, given: tuple[str, ...], config: Config, folder: pathlib.Path
) -> list[tuple[str, ...]]:
  """Those of all texts, chunk by chunk; chunks that are there are not made again."""
  chunks = folder / "chunks"
  chunks.mkdir(exist_ok=True)
  copies: list[tuple[str, ...]] = []
  firsts = range(0, len(given), CHUNK)
  for first in tqdm(firsts, disable=not config.progress, desc=folder.name, unit="chunk"):
    path = chunks / f"{first:09d}.parquet"
    if not path.exists():
      made = rewrite(writer, given[first : first + CHUNK], config, first=first)
      columns = {f"copy_{i}": list(column) for i, column in enumerate(zip(*made, strict=True))}
      files.write_table(path, pl.DataFrame(columns))
    copies += pl.read_parquet(path).rows()
  return copies


def rewrite(
  writer: Writer, given: Sequence[str], config: Config, *, first: int = 0
) -> list[tuple[str, ...]]:
  """Copies of texts in which `share` of the words that are one token are others.

  Each word is hidden alone, and drawn from the `candidates` likeliest other words in its place by
  their chances. What a text becomes depends on the seed and on its number alone.

  Args:
    writer: what finds words.
    given: texts.
    config: the flags.
    first: the number of the first text.

  Returns:
    For every text as many copies as the flags say.

  Reference:
    X. Jiao et al., TinyBERT, Findings of EMNLP 2020, arXiv:1909.10351, algorithm 1; they draw with
    equal chances, and words of several tokens from the neighbours of their word vectors.
  """
  rows = texts.encode_alone(writer.tokenizer, given, max_length=writer.length)
  encodings = writer.tokenizer.encode_batch(list(given))
  words = [
    _words(encoding, text, writer.kinds) for encoding, text in zip(encodings, given, strict=True)
  ]
  draws = [np.random.default_rng([config.seed, first + i]) for i in range(len(given))]
  chosen = [
    draw.random((config.copies, len(found))) < config.share
    for draw, found in zip(draws, words, strict=True)
  ]
  asked = [
    (text, word.place)
    for text, found in enumerate(words)
    for word, wanted in zip(found, np.any(chosen[text], axis=0).tolist(), strict=True)
    if wanted
  ]
  if not asked:
    return [(text,) * config.copies for text in given]
  chances, ids = _candidates(writer, rows, np.array(asked), config)
  row_of = {pair: row for row, pair in enumerate(asked)}

  def copy_of(text: int, wanted: np.ndarray) -> str:
    parts, end = [], 0
    for word in (word for word, now in zip(words[text], wanted, strict=True) if now):
      row = row_of[text, word.place]
      token = int(draws[text].choice(ids[row], p=chances[row]))
      parts += [given[text][end : word.start], writer.tokenizer.decode([token]).strip()]
      end = word.stop
    return "".join((*parts, given[text][end:]))

  return [tuple(copy_of(i, wanted) for wanted in chosen[i]) for i in range(len(given))]


def _candidates(
  writer: Writer, rows: dict[str, np.ndarray], asked: np.ndarray, config: Config
) -> tuple[np.ndarray, np.ndarray]:
  """Chances and ids of the likeliest other words at pairs of text and place: `[N, k]` each."""
  text, place = asked.T
  given = {name: values[text] for name, values in rows.items()}
  was = given["tokens"][np.arange(len(asked)), place]
  given["tokens"][np.arange(len(asked)), place] = mask_id(writer.tokenizer)
  given["was"] = np.repeat(was[:, None], rows["tokens"].shape[1], axis=1)
  found = serve.encode_texts(
    writer.likeliest, writer.params, given, tokens_per_call=config.tokens_per_call
  )
  chances = found[:, 0].astype(np.float64)
  return chances / chances.sum(axis=1, keepdims=True), found[:, 1].astype(int)


def _words(encoding: Any, text: str, kinds: np.ndarray) -> list[Word]:
  """The words that are one token, with space or the marks of a sentence around them."""
  of_word, found = [None, *encoding.word_ids, None], []
  for place, (token, (start, stop)) in enumerate(zip(encoding.ids, encoding.offsets, strict=True)):
    before, word, after = of_word[place : place + 3]
    if word is None or word in (before, after) or not kinds[token]:
      continue
    start += len(text[start:stop]) - len(text[start:stop].lstrip())  # Some tokens have the space.
    begins = start == 0 or text[start - 1].isspace()
    ends = stop == len(text) or text[stop].isspace() or text[stop] in ".,;:!?)"
    if begins and ends:
      found.append(Word(place, start, stop))
  return found


def word_kinds(tokenizer: Any) -> np.ndarray:
  """Which tokens may stand for each other: those of letters that begin words, or go on with them.

  Args:
    tokenizer: one that marks what goes on (`##ing`), or what stands after a space.

  Returns:
    int `[V]`: 1 for what begins a word, 2 for what goes on with one, 0 for what has other marks or
    digits, and where there are no two of a kind.
  """
  ordinary, vocabulary = ordinary_ids(tokenizer), tokenizer.get_vocab()
  marked = any(token[0] in STARTS for token in vocabulary)
  kinds = np.zeros(len(ordinary), int)
  for token, number in vocabulary.items():
    if ordinary[number] and tokenizer.decode([number]).strip().removeprefix("##").isalpha():
      goes_on = token[0] not in STARTS if marked else token.startswith("##")
      kinds[number] = 1 + goes_on
  alone = [kind for kind in (1, 2) if np.sum(kinds == kind) < 2]
  return np.where(np.isin(kinds, alone), 0, kinds)


if __name__ == "__main__":
  cli.main(Config, run, None)
