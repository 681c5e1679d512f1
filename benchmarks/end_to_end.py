r"""From a log to a small int8 model: wall time against plain PyTorch, and how it grows.

    python -m benchmarks.end_to_end --data=../shared/data/amazon-video-games
    python -m benchmarks.end_to_end --data=synthetic --epochs=30 --recovery_epochs=10 \
      --torch_steps=0 --torch_users=0
    python -m benchmarks.end_to_end --grow=items
    python -m benchmarks.end_to_end --grow=users

The path: a SASRec teacher learns by cross-entropy over the whole catalogue; a smaller one learns
from it and the labels (the same weights of KL and cross-entropy); half of its weights go, by
magnitude and a cubic schedule, while it goes on learning so; what is left is rounded to int8. After
every epoch the validation items are ranked among the whole catalogue, after every stage the test
items.

Ours are the binaries train, distill, prune and quantize, called as their users call them, and the
time is all of theirs: reading, compiling, validating, checkpoints, the final judgements. PyTorch
(the extra `bench`) is `benchmarks/torch_sasrec.py` with a padded row a user, as many users a step,
as many epochs, and the teacher run beside the student in every step; its log is read by ours, at no
cost to it. `plain` has logits at every position, as most published code does; `gathered` only where
there is a label. `--torch_steps` and `--torch_users` time that many steps of each stage and that
many users of each judgement and multiply; 0 runs all, to compare the quality as well.

Growth is over logs of random events, where every item has one: an epoch a stage, exact losses over
the whole catalogue. Each run of this script keeps what others wrote to the file.
"""

import importlib.metadata
import itertools
import json
import math
import pathlib
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import polars as pl
from absl import app, flags

from benchmarks.catalog_loss import made_with
from experiments import distill, problems, prune, quantize, ranking, train
from experiments.config import DataConfig, DistillConfig, FitConfig, ModelConfig, PruneConfig
from kdjax.data.interactions import Dataset

FLAGS = flags.FLAGS
flags.DEFINE_string("data", "", "The log to run on, against PyTorch.")
flags.DEFINE_enum("grow", "", ["", "items", "users"], "What to grow instead, on random logs.")
flags.DEFINE_list("sizes", ["10000", "100000", "1000000"], "--grow: how many of them.")
flags.DEFINE_integer("other", 10_000, "--grow: how many of the others, users or items.")
flags.DEFINE_integer("events", 6, "--grow: events of a user.")
flags.DEFINE_integer("epochs", 3, "Epochs of the teacher and of the student.")
flags.DEFINE_integer("recovery_epochs", 2, "Epochs of the pruning.")
flags.DEFINE_integer("dim", 64, "Width of the teacher; the student's is half of it.")
flags.DEFINE_integer("torch_steps", 6, "Steps of each stage that PyTorch is timed on; 0 for all.")
flags.DEFINE_integer("torch_users", 2048, "Users of each judgement it is timed on; 0 for all.")
flags.DEFINE_string("work", "", "Folder of the runs; a temporary one when not given.")
flags.DEFINE_string("out", "benchmarks/results/end_to_end.json", "Where the figures go.")

LENGTH, USERS, RATE, SPARSITY, LABELS, KL, MASK_EVERY = 50, 128, 1e-3, 0.5, 0.2, 0.8, 20
STAGES = ("teacher", "distilled", "pruned", "int8")
TARGET, EXPONENT = 5.0, 1.05
DISTILL = DistillConfig(label_weight=LABELS, distill_weight=KL, cache_queries=True)


def settings() -> tuple[ModelConfig, ModelConfig, FitConfig, FitConfig]:
  """Teacher, student, how both are fitted, and how the pruned one is."""
  teacher = ModelConfig(dim=FLAGS.dim, layers=2, dropout=0.2)
  student = ModelConfig(dim=FLAGS.dim // 2, layers=1, dropout=0.0)
  options: dict[str, Any] = {"batch_size": USERS, "learning_rate": RATE, "patience": None}
  quiet = {"progress": False, "tensorboard": False, "warmup_steps": 0}
  first = FitConfig(epochs=FLAGS.epochs, **options, **quiet)
  return teacher, student, first, FitConfig(epochs=FLAGS.recovery_epochs, **options, **quiet)


def ours(data: DataConfig, work: pathlib.Path) -> dict[str, Any]:
  """Seconds and test NDCG@10 of every stage."""
  teacher, student, fit, recovery = settings()
  folders = {stage: str(work / stage) for stage in STAGES}
  taught = distill.Config((folders["teacher"],), data, student, DISTILL, fit)
  pruned = prune.Config(
    folders["distilled"],
    folders["teacher"],
    DISTILL,
    PruneConfig(sparsity=SPARSITY, mask_every=MASK_EVERY),
    recovery,
  )
  calls: dict[str, Callable[[str], dict[str, Any]]] = {
    "teacher": lambda to: train.run(train.Config(data, teacher, fit), to),
    "distilled": lambda to: distill.run(taught, to),
    "pruned": lambda to: prune.run(pruned, to),
    "int8": lambda to: quantize.run(quantize.Config(folders["pruned"]), to),
  }
  seconds, quality = {}, {}
  for stage, call in calls.items():
    start = time.perf_counter()
    result = call(folders[stage])
    seconds[stage] = time.perf_counter() - start
    quality[stage] = result["quality"]["ndcg@10"]["value"]
  return summed(seconds, quality)


def summed(seconds: dict[str, float], quality: dict[str, float]) -> dict[str, Any]:
  """What the file keeps of a path."""
  return {
    "seconds": round(sum(seconds.values()), 1),
    "stages": {name: round(value, 1) for name, value in seconds.items()},
    "test ndcg@10": {name: round(value, 4) for name, value in quality.items()},
  }


def torchs(dataset: Dataset, *, gathered: bool) -> dict[str, Any]:
  """The same path in PyTorch: seconds of every stage, and test NDCG@10 where all was run."""
  import torch
  from torch.nn import functional

  from benchmarks import torch_sasrec

  teacher_config, student_config, fit, recovery = settings()
  split, num_items = dataset.split, dataset.num_items
  users = np.flatnonzero(split.train.lengths > 1)
  rng = np.random.default_rng(0)
  steps_of_epoch = len(users) // USERS

  def make(config: ModelConfig) -> Any:
    return torch_sasrec.make(
      num_items, length=LENGTH, dim=config.dim, layers=config.layers, heads=config.heads,
      dropout=config.dropout,
    )  # fmt: skip

  def epoch_orders():
    while True:
      yield from np.array_split(rng.permutation(users), steps_of_epoch)

  def judge(model: Any, part: str) -> tuple[float, float]:
    """Seconds of ranking all users of a part, and NDCG@10 of those that were ranked."""
    seen, targets = ranking.histories(dataset, part), getattr(split, part)
    judged = np.flatnonzero(targets.lengths)
    chosen = judged[: FLAGS.torch_users or len(judged)]
    model.eval()
    gains, start = [], time.perf_counter()
    with torch.no_grad():
      for first in range(0, len(chosen), 256):
        block = chosen[first : first + 256]
        items = np.full((len(block), LENGTH), num_items)
        for row, user in enumerate(block):
          history = seen.row(user)[-LENGTH:]
          items[row, : len(history)] = history
        ends = torch.tensor(np.minimum(seen.lengths[block], LENGTH) - 1)
        hidden = model(torch.from_numpy(items))[torch.arange(len(block)), ends]
        scores = model.logits(hidden)
        target = torch.tensor([int(targets.row(user)[0]) for user in block])
        own = scores.gather(1, target[:, None])
        for row, user in enumerate(block):
          scores[row, torch.from_numpy(seen.row(user).astype(np.int64))] = -torch.inf
        rank = (scores > own).sum(1)
        gains.append(torch.where(rank < 10, 1 / torch.log2(rank + 2.0), 0.0))
    model.train()
    seconds = (time.perf_counter() - start) * len(judged) / len(chosen)
    return seconds, float(torch.cat(gains).mean())

  def loss_of(model: Any, teacher: Any, index: np.ndarray) -> Any:
    items, labels = torch_sasrec.rows(split.train, index, length=LENGTH, padding=num_items)
    real = labels != torch_sasrec.IGNORED

    def logits(of: Any) -> Any:
      hidden = of(items)
      return of.logits(hidden[real] if gathered else hidden).reshape(-1, num_items)

    given = labels[real] if gathered else labels.reshape(-1)
    own = logits(model)
    loss = functional.cross_entropy(own, given)
    if teacher is None:
      return loss
    with torch.no_grad():
      other = functional.log_softmax(logits(teacher), dim=-1)
    rows = functional.kl_div(
      functional.log_softmax(own, dim=-1), other, log_target=True, reduction="none"
    ).sum(-1)
    counted = given != torch_sasrec.IGNORED
    return LABELS * loss + KL * (rows * counted).sum() / counted.sum()

  def learn(model: Any, teacher: Any, config: FitConfig, masked: bool = False) -> float:
    """Seconds of all epochs and their validations."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.0)
    total = config.epochs * steps_of_epoch
    ramp, masks = max(1, total // 2), {}
    validations, times = 0.0, []
    orders = epoch_orders()
    for step in range(min(total, FLAGS.torch_steps or total)):
      start = time.perf_counter()
      loss = loss_of(model, teacher, next(orders))
      optimizer.zero_grad()
      loss.backward()
      optimizer.step()
      if masked:
        with torch.no_grad():
          weights = {n: p for n, p in model.named_parameters() if p.ndim == 2}
          if step % MASK_EVERY == 0 and step <= ramp:
            share = SPARSITY * (1 - (1 - min(1.0, (step + MASK_EVERY) / ramp)) ** 3)
            for name, weight in weights.items():
              size = weight.abs()
              edge = size.flatten().kthvalue(max(1, int(share * size.numel()))).values
              masks[name] = size > edge
          for name, weight in weights.items():
            weight.mul_(masks[name])
      times.append(time.perf_counter() - start)
      if not FLAGS.torch_steps and (step + 1) % steps_of_epoch == 0:
        validations += judge(model, "valid")[0]
    if not FLAGS.torch_steps:
      return sum(times) + validations
    # The first step allocates, and is not timed where few stand for many.
    return float(np.mean(times[1:])) * total + judge(model, "valid")[0] * config.epochs

  def round_weights(model: Any) -> None:
    with torch.no_grad():
      for weight in model.parameters():
        if weight.ndim == 2:
          scale = weight.abs().amax(1, keepdim=True).clamp_min(1e-12) / 127
          weight.copy_((weight / scale).round().to(torch.int8) * scale)

  seconds, quality = {}, {}
  teacher, student = make(teacher_config), make(student_config)
  for stage in STAGES:
    model = teacher if stage == "teacher" else student
    if stage == "int8":
      start = time.perf_counter()
      round_weights(model)
      seconds[stage] = time.perf_counter() - start
    else:
      if stage == "distilled":
        teacher.eval()
      given = (recovery, True) if stage == "pruned" else (fit, False)
      seconds[stage] = learn(model, None if model is teacher else teacher, *given)
    spent, quality[stage] = judge(model, "test")
    seconds[stage] += spent
    print(f"torch, {stage}: {seconds[stage]:.0f} s", flush=True)
  whole = not FLAGS.torch_steps and not FLAGS.torch_users
  return summed(seconds, quality if whole else {})


def against_torch(work: pathlib.Path) -> dict[str, Any]:
  """Both sides on one log."""
  data = DataConfig(dataset=FLAGS.data, max_length=LENGTH, all_windows=False)
  found = {"kdjax": ours(data, work)}
  dataset = problems.load_data(data)
  for name in ("plain", "gathered"):
    found[f"torch {name}"] = torchs(dataset, gathered=name == "gathered")
  own = found["kdjax"]["seconds"]
  times = {name: round(side["seconds"] / own, 2) for name, side in found.items() if name != "kdjax"}
  return {
    **about(torch=importlib.metadata.version("torch")),
    "users": dataset.num_users,
    "items": dataset.num_items,
    "torch steps of a stage": FLAGS.torch_steps or "all",
    "torch users of a judgement": FLAGS.torch_users or "all",
    "sides": found,
    "times ours": times,
    "target": {"times torch plain": TARGET, "met": times["torch plain"] >= TARGET},
  }


def about(**versions: str) -> dict[str, Any]:
  """What every part of the file says of how it came about."""
  return {
    "command": " ".join(["python -m benchmarks.end_to_end", *sys.argv[1:]]),
    "epochs": [FLAGS.epochs, FLAGS.epochs, FLAGS.recovery_epochs],
    "teacher_dim": FLAGS.dim,
    "made_with": {**made_with(), **versions},
  }


def write_log(path: pathlib.Path, *, users: int, items: int, events: int) -> None:
  """Random events, and a first user who met every item: its last `LENGTH` alone are trained on."""
  rng = np.random.default_rng(0)
  who = np.concatenate([np.zeros(items, np.int64), np.repeat(np.arange(1, users), events)])
  what = np.concatenate([rng.permutation(items), rng.integers(0, items, (users - 1) * events)])
  frame = pl.DataFrame({"user": who, "item": what, "timestamp": np.arange(len(who))})
  frame.write_parquet(path)


def grow(work: pathlib.Path) -> dict[str, Any]:
  """Our path at every size, and the exponents."""
  sizes = [int(size) for size in FLAGS.sizes]
  found = {}
  for size in sizes:
    users, items = (FLAGS.other, size) if FLAGS.grow == "items" else (size, FLAGS.other)
    path = work / f"log-{size}.parquet"
    write_log(path, users=users, items=items, events=FLAGS.events)
    data = DataConfig(dataset=str(path), max_length=LENGTH, all_windows=False)
    problems.load_data.cache_clear()
    problems.make_task.cache_clear()
    jax.clear_caches()
    found[size] = ours(data, work / f"runs-{size}")
    found[size].pop("test ndcg@10")  # Of random events there is nothing to learn.
    print(f"{size:,} {FLAGS.grow}: {found[size]}", flush=True)
  exponents = {
    f"{a:,} to {b:,}": round(math.log(found[b]["seconds"] / found[a]["seconds"], b / a), 3)
    for a, b in itertools.pairwise(sizes)
  }
  return {
    **about(),
    "others": FLAGS.other,
    "events of a user": FLAGS.events,
    "sizes": found,
    "exponents": exponents,
    "target": {"exponent": EXPONENT, "met": max(exponents.values()) <= EXPONENT},
  }


def main(argv: list[str]) -> None:
  """Measures what was asked and adds it to the file."""
  del argv
  if bool(FLAGS.data) == bool(FLAGS.grow):
    raise app.UsageError("give --data, a log to run on, or --grow")
  with tempfile.TemporaryDirectory() as temporary:
    work = pathlib.Path(FLAGS.work or temporary)
    work.mkdir(parents=True, exist_ok=True)
    found = grow(work) if FLAGS.grow else against_torch(work)
  out = pathlib.Path(FLAGS.out)
  result = json.loads(out.read_text(encoding="utf-8")) if out.exists() else {}
  part = "growth" if FLAGS.grow else "against torch"
  name = FLAGS.grow or pathlib.Path(FLAGS.data).name
  result[part] = {**result.get(part, {}), name: found}
  out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
  print(json.dumps(found, indent=1))


if __name__ == "__main__":
  app.run(main)
