"""A language model as a teacher of a recommender: it ranks items by how likely their titles are.

python -m experiments.rank_titles --workdir=runs/llm --dataset=path/to/log \
  --checkpoint=path/to/qwen --candidates_from=runs/teacher

For every user the titles of the last training events but one make a prompt, a first model proposes
items, and the decoder scores how likely each title follows. What it writes is learned by
`experiments.distill --cached_rankings=runs/llm`. Neither validation nor test items are seen.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm.auto import tqdm

from experiments import cli, families, meshes, pretrained, problems, rankings, runs, stored
from experiments.config import DataConfig, LoadConfig
from experiments.embed import item_texts
from kdjax import serve
from kdjax.data.errors import DataError
from kdjax.data.interactions import Dataset
from kdjax.data.tokens import load_tokenizer
from kdjax.flags import group, option
from kdjax.metrics import catalog
from kdjax.models import hub
from kdjax.models.decoder import Cached
from kdjax.types import Array, Batch, Params

USERS_PER_PART = 64


@dataclasses.dataclass(frozen=True)
class Config:
  """Options of experiments.rank_titles."""

  checkpoint: str = option(
    "", "The language model: a Hugging Face decoder folder, or a workdir of a trained decoder."
  )
  candidates_from: str = option(
    "", "Workdir of a trained sequence model, whose best items the language model ranks."
  )
  candidates: int = option(20, "Items ranked a user.", lower=2)
  history: int = option(10, "Titles of the prompt, the last ones.", lower=1)
  prompt: str = option(
    "A customer bought, in this order: {history}. Next, the customer buys:",
    "The prompt; {history} stands for the titles, ; between them.",
  )
  columns: tuple[str, ...] = option(
    (), "Columns of the items' attributes, joined into one text; title and the like when not given."
  )
  prompt_tokens: int = option(192, "Tokens of a prompt; the oldest titles go first.", lower=8)
  title_tokens: int = option(24, "Tokens of a title that are scored.", lower=1)
  per_token: bool = option(
    True, "Divide by the tokens of a title, so that long ones do not lose by their length."
  )
  users: int = option(0, "Users that are ranked, drawn by --seed; 0 for all.", lower=0)
  users_per_call: int = option(1, "Users of one compiled call.", lower=1)
  seed: int = option(0, "Of the draw of users.")
  progress: bool = option(True, "Draw a progress bar.")
  load: LoadConfig = group(LoadConfig)
  data: DataConfig = group(DataConfig)


def run(config: Config, workdir: str | pathlib.Path) -> dict[str, Any]:
  """Ranks part by part, each kept when it is done, and joins them."""
  folder = runs.open_workdir(workdir, config)
  if (done := runs.finished(folder)) is not None:
    return done
  if "{history}" not in config.prompt:
    raise ValueError(f"--prompt={config.prompt!r} has no {{history}} in it")
  dataset = problems.load_data(config.data)
  titles = item_texts(dataset, config.columns)
  score = _scorer(config)
  first = stored.load_model(config.candidates_from, flag="--candidates_from")
  users, lists, best = propose(dataset, first, config)
  parts = range(0, len(users), USERS_PER_PART)
  (folder / "parts").mkdir(exist_ok=True)
  for begin in tqdm(parts, desc="ranking", disable=not config.progress):
    path = folder / "parts" / f"{begin:09d}.npz"
    if path.exists():
      continue
    chosen = slice(begin, begin + USERS_PER_PART)
    known = [[titles[item] for item in items[-config.history :]] for items in lists[chosen]]
    wanted = [[titles[item] or "?" for item in items] for items in best[chosen]]
    rankings.write(path, _ranked(score(known, wanted), users[chosen], best[chosen], dataset))
  made = [rankings.read(path) for path in sorted((folder / "parts").glob("*.npz"))]
  joined = rankings.Rankings(*(np.concatenate(column) for column in zip(*made, strict=True)))
  rankings.write(folder / rankings.FILE, joined)
  quality = _quality(joined, users, dataset, best)
  result = {
    "job": "rank_titles",
    "users": len(users),
    "candidates": config.candidates,
    "file": rankings.FILE,
    "quality": quality,
  }
  for name, value in quality.items():
    print(f"last training event: {name:22s} {value:.4f}")
  runs.write_result(folder, result)
  return result


def propose(
  dataset: Dataset, first: stored.SavedModel, config: Config
) -> tuple[np.ndarray, list[np.ndarray], np.ndarray]:
  """The users, what they did before their last training event, and the first model's best items.

  Returns:
    Users int `[N]`; their items, one array each; int `[N, C]`, the best item first.
  """
  if first.family not in ("sasrec", "gru4rec"):
    raise ValueError(f"--candidates_from is a {first.family}; use a sasrec or gru4rec")
  train = dataset.split.train
  users = np.nonzero(train.lengths >= 2)[0]
  if config.users and config.users < len(users):
    users = np.sort(np.random.default_rng(config.seed).permutation(users)[: config.users])
  if config.candidates > dataset.num_items // 2:
    raise ValueError(
      f"--candidates={config.candidates} of {dataset.num_items} items; at most half of them"
    )
  lists = [train.items[train.offsets[u] : train.offsets[u + 1] - 1] for u in users]
  items, offsets = np.concatenate(lists), np.r_[0, np.cumsum([len(x) for x in lists])]
  apply = families.make_model(first.family, first.sizes).apply
  params = jax.tree.map(jnp.asarray, first.params)
  queries = serve.encode_histories(
    apply, params, items, offsets, length=first.sizes.get("max_length", config.data.max_length)
  )
  found = catalog.top_k(
    queries.query, queries.table, items, offsets, k=config.candidates, bias=queries.bias
  )
  return users, lists, found.ids


def _scorer(config: Config) -> Callable[[list[list[str]], list[list[str]]], np.ndarray]:
  """From the titles of each user's history and candidates to scores, float32 `[N, C]`."""
  if not config.checkpoint:
    raise ValueError("--checkpoint: give the folder of a language model")
  folder = pathlib.Path(config.checkpoint)
  own = config.data.tokenizer or folder
  mesh, dtype = meshes.mesh_of(config.load.mesh), config.load.checkpoint_dtype
  found = (
    pretrained.load(folder, head="tokens", tokenizer=own, dtype=dtype, mesh=mesh)
    if hub.is_checkpoint(folder)
    else stored.load_model(folder, flag="--checkpoint")
  )
  family, sizes, params = found.family, found.sizes, found.params
  if family != "decoder":
    raise ValueError(f"--checkpoint={folder} is a {family}; only a decoder writes titles")
  tokenizer = load_tokenizer(own)
  cached = families.make_cached(sizes, pretrained.dtype_of(params))
  cached, params = meshes.placed_cached(cached, params, mesh)
  length = config.prompt_tokens
  if tokenizer.get_vocab_size() > sizes["vocab_size"]:
    raise DataError(f"--tokenizer has more tokens than --checkpoint={folder} knows")

  def prompt(titles: list[str]) -> list[int]:
    """As many of the newest titles as fit."""
    for first in range(len(titles)):
      text = config.prompt.format(history="; ".join(titles[first:]))
      ids = _tokens(tokenizer, [text], begins=True)[0]
      if len(ids) <= length:
        return ids
    return ids[-length:]

  def score(known: list[list[str]], wanted: list[list[str]]) -> np.ndarray:
    said = [[title for title in titles if title] or ["?"] for titles in known]
    prompts = _padded([prompt(titles) for titles in said], length)
    flat = [" " + title for titles in wanted for title in titles]
    cut = [ids[: config.title_tokens] for ids in _tokens(tokenizer, flat)]
    answers = _padded(cut, config.title_tokens).reshape(len(known), -1, config.title_tokens)
    made = []
    size = config.users_per_call
    for begin in range(0, len(known), size):
      # The last call is filled up with its last user, so that one program serves.
      index = np.minimum(np.arange(begin, begin + size), len(known) - 1)
      tokens = prompts[index]
      batch = {
        "tokens": tokens,
        "segments": (tokens >= 0).astype(np.int32),
        "positions": np.broadcast_to(np.arange(length, dtype=np.int32), tokens.shape),
      }
      found = np.asarray(_likelihoods(cached, params, batch, answers[index]))
      made.append(found[: len(known) - begin])
    scores = np.concatenate(made)
    if config.per_token:
      scores = scores / np.maximum((answers >= 0).sum(axis=-1), 1)
    return scores.astype(np.float32)

  return score


@functools.partial(jax.jit, static_argnums=0)
def _likelihoods(cached: Cached, params: Params, batch: Batch, answers: Array) -> Array:
  return serve.score_continuations(cached, params, batch, answers)


def _tokens(tokenizer: Any, texts: list[str], *, begins: bool = False) -> list[list[int]]:
  """Tokens of each text, uncut: with what marks a beginning if it `begins`, never with an end."""
  tokenizer.no_padding()
  tokenizer.no_truncation()
  made = []
  for found in tokenizer.encode_batch(texts, add_special_tokens=begins):
    ends = found.ids and found.special_tokens_mask[-1] and len(found.ids) > 1
    made.append(found.ids[:-1] if ends else found.ids)
  return made


def _padded(rows: list[list[int]], length: int) -> np.ndarray:
  out = np.full((len(rows), length), -1, np.int32)
  for row, ids in zip(out, rows, strict=True):
    row[: len(ids)] = ids
  return out


def _ranked(
  scores: np.ndarray, users: np.ndarray, items: np.ndarray, dataset: Dataset
) -> rankings.Rankings:
  """Sorted by score; of equals the first model's order stays."""
  order = np.argsort(-scores, axis=1, kind="stable")
  names = np.array([str(item) for item in dataset.item_ids])
  return rankings.Rankings(
    np.array([str(dataset.user_ids[int(user)]) for user in users]),
    names[np.take_along_axis(items, order, axis=1)],
    np.take_along_axis(scores, order, axis=1),
  )


def _quality(
  made: rankings.Rankings, users: np.ndarray, dataset: Dataset, best: np.ndarray
) -> dict[str, float]:
  """How often the last training event stands in the candidates, and leads either list."""
  train = dataset.split.train
  last = train.items[train.offsets[users + 1] - 1]
  names = np.array([str(item) for item in dataset.item_ids])[last]
  return {
    "in the candidates": float(np.mean((best == last[:, None]).any(axis=1))),
    "first of the candidates": float(np.mean(best[:, 0] == last)),
    "first of the ranking": float(np.mean(made.items[:, 0] == names)),
  }


if __name__ == "__main__":
  cli.main(Config, run, None)
