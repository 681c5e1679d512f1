"""A bag of static embeddings from a text encoder's words on the vocabulary, without any training.

python -m experiments.distill_static --workdir=runs/static --teacher=path/to/minilm \
  --dataset=path/to/cranfield

The teacher reads every token of the vocabulary as a text of its own; principal components bring
what it says to `--dim`, and tokens that are frequent in the corpus (the documents, or the training
texts) weigh less. The run is one of a static model like any other: it is judged here, and
`experiments.distill --start=runs/static` trains it on.
"""

import dataclasses
import pathlib
import time
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments import cli, families, problems, retrieval_rows, runs, stored, texts
from experiments.config import DataConfig, ModelConfig
from experiments.tasks import TEXT_FAMILIES, Task
from kdjax import models, serve
from kdjax.data.tokens import ordinary_ids, text_frame
from kdjax.flags import group, option
from kdjax.models import hub
from kdjax.train import teacher_queries
from kdjax.types import Apply, Params

TOKENS_PER_CALL = 256


@dataclasses.dataclass(frozen=True)
class Config:
  """Options of experiments.distill_static."""

  teacher: str = option(
    "",
    "A Hugging Face checkpoint folder (a BERT or a decoder), or the workdir of a trained encoder.",
  )
  model: Literal["bi_encoder", "static"] = option(
    "bi_encoder",
    "What it is: a bi_encoder of search, or a static classifier of texts, whose last layer is that "
    "of the training texts' class means and variances.",
  )
  dim: int = option(256, "Width of the table, at most that of the teacher's embeddings.", lower=1)
  smoothing: float = option(
    1e-3, "A token that makes the share p of the corpus weighs a / (a + p); this is a.", lower=1e-9
  )
  progress: bool = option(True, "Draw progress bars.")
  data: DataConfig = group(DataConfig)


class Teacher(NamedTuple):
  """An encoder of texts: the feature `query` of a row is its embedding."""

  apply: Apply
  params: Params


def run(config: Config, workdir: str | pathlib.Path) -> dict[str, Any]:
  """Encodes the vocabulary, judges on the test part, and leaves the model and `result.json`."""
  folder = runs.open_workdir(workdir, config)
  if (done := runs.finished(folder)) is not None:
    return done
  data, teacher = load_teacher(config)
  problems.describe_data(data, config.model, folder)
  task = problems.make_task(data, config.model)
  student = ModelConfig(config.model, encoder="static", dim=config.dim)
  sizes = families.model_sizes(student, task)
  started = time.perf_counter()
  words = problems.tokenizer_of(data, config.model)
  ordinary = ordinary_ids(words)
  said = embed_tokens(teacher, words, np.flatnonzero(ordinary), config)
  counts = np.bincount(corpus(task, data), minlength=len(ordinary))[ordinary]
  # Special tokens stand in every text alike, and say nothing.
  table = np.zeros([len(ordinary), config.dim], np.float32)
  table[ordinary] = models.distill_table(said, counts, dim=config.dim, smoothing=config.smoothing)
  params: dict[str, Any] = {"token_embedding": {"embedding": jnp.asarray(table)}}
  if config.model == "static":
    params["classifier"] = classifier(params, task)
  seconds = time.perf_counter() - started
  training = {"seconds": seconds, "tokens": len(said), "counted": int(np.sum(counts > 0))}
  return runs.finish(
    "distill_static", folder, config.model, sizes, params, data, seed=0, training=training
  )


def load_teacher(config: Config) -> tuple[DataConfig, Teacher]:
  """The teacher, and the data in its tokens.

  Raises:
    ValueError: naming --teacher or --tokenizer, and what would be right.
  """
  if not config.teacher:
    raise ValueError("--teacher: give a checkpoint folder, or the workdir of a trained encoder")
  folder, data = pathlib.Path(config.teacher), config.data
  if hub.is_checkpoint(folder):
    data = dataclasses.replace(data, tokenizer=data.tokenizer or config.teacher)
    found = hub.load(folder, head="pool", dtype=np.float32)
    words = problems.tokenizer_of(data, config.model)
    if found.sizes["vocab_size"] < words.get_vocab_size():
      raise ValueError(
        f"--teacher={config.teacher} knows {found.sizes['vocab_size']:,} tokens, but --tokenizer "
        f"gives {words.get_vocab_size():,}; use the checkpoint's own"
      )
    make = getattr(models, f"make_{found.family}")
    return data, Teacher(make(**found.sizes).apply, found.params)
  saved = stored.load_model(folder, flag="--teacher")
  embeds = saved.family in (*TEXT_FAMILIES, "bi_encoder") and saved.sizes.get("head") != "tokens"
  if not embeds:
    raise ValueError(
      f"--teacher={config.teacher} is a {saved.family} without an embedding of a text; give a "
      f"bi_encoder, or a classifier of texts ({', '.join(TEXT_FAMILIES)})"
    )
  texts.check_tokenizer(data, folder, problems.tokenizer_of(data, config.model))
  if changed := stored.other_split(saved.data, data):
    raise ValueError(f"--teacher={config.teacher} was trained on another split: {changed}")
  return data, Teacher(families.make_model(saved.family, saved.sizes).apply, saved.params)


def embed_tokens(teacher: Teacher, words: Any, ids: np.ndarray, config: Config) -> np.ndarray:
  """The teacher's embedding of each token alone, between its special ones: float32 `[N, D]`.

  Raises:
    ValueError: naming --dim, if it is larger than D.
  """
  before, after = text_frame(words)
  rows = token_rows(ids, before, after)
  query = jax.jit(lambda params, batch: teacher.apply(params, batch).features["query"])
  one = {name: values[:1] for name, values in rows.items()}
  width = jax.eval_shape(query, teacher.params, one).shape[1]
  if config.dim > width:
    raise ValueError(f"--dim={config.dim}: the teacher's embeddings are {width} wide; give as many")
  said = teacher_queries.map_rows(
    lambda batch: query(teacher.params, batch),
    rows,
    name="teacher's tokens",
    rows_per_call=TOKENS_PER_CALL,
    progress=config.progress,
  )
  return said.astype(np.float32)


def token_rows(
  ids: np.ndarray, before: tuple[int, ...], after: tuple[int, ...]
) -> dict[str, np.ndarray]:
  """Texts of one token each, as `kdjax.data.tokens.encode` gives them without types.

  Example:
    >>> token_rows(np.array([5, 6]), (1,), (2,))["tokens"].tolist()
    [[1, 5, 2], [1, 6, 2]]
  """
  tokens = np.stack([np.array([*before, token, *after], np.int32) for token in ids])
  positions = np.broadcast_to(np.arange(tokens.shape[1], dtype=np.int32), tokens.shape)
  return {"tokens": tokens, "segments": np.ones_like(tokens), "positions": positions}


def corpus(task: Task, data: DataConfig) -> np.ndarray:
  """The tokens of all documents of search, or of the training texts: int32 `[N]`."""
  search = task.name == "search"
  tokens = (retrieval_rows.encoded(data).documents if search else task.arrays)["tokens"]
  return tokens[tokens >= 0]


def classifier(params: Params, task: Task) -> dict[str, Any]:
  r"""The last layer of a static classifier, from the training texts in closed form.

  $$\log p(c) - \tfrac12 \sum_j (x_j - \mu_{cj})^2 / \sigma_j^2$$ up to what classes share: a
  Gaussian for each class, with one variance $\sigma_j^2$ for all.
  """
  apply = models.make_static(
    vocab_size=task.sizes["vocab_size"],
    dim=params["token_embedding"]["embedding"].shape[1],
    normalize=False,
  ).apply
  rows: Mapping[str, np.ndarray] = {name: task.arrays[name] for name in ("tokens", "segments")}
  x, labels = serve.encode_texts(apply, params, rows), task.arrays["labels"]
  one_hot = np.eye(task.sizes["num_labels"])[labels]
  counts = one_hot.sum(axis=0)
  means = one_hot.T @ x / np.maximum(counts, 1)[:, None]
  variance = np.mean((x - means[labels]) ** 2, axis=0)
  variance = np.maximum(variance, 1e-6 * variance.max(initial=1e-30))
  share = (counts + 1) / (len(x) + len(counts))
  bias = np.log(share) - 0.5 * np.sum(means**2 / variance, axis=1)
  kernel = means.T / variance[:, None]
  return {"kernel": jnp.asarray(kernel, jnp.float32), "bias": jnp.asarray(bias, jnp.float32)}


if __name__ == "__main__":
  cli.main(Config, run, None)
