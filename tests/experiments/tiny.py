"""Configurations small enough to train in seconds."""

import os
import pathlib
import subprocess
import sys

from experiments import compress, distill, tasks, train
from experiments.config import DataConfig, DistillConfig, FitConfig, ModelConfig, PruneConfig

DATA = DataConfig(synthetic_users=60, synthetic_items=40, synthetic_length=12, max_length=16)
CLICKS = DataConfig(
  synthetic_users=60, synthetic_items=40, synthetic_length=12, split="ratio", valid_fraction=0.2,
  test_fraction=0.2,
)  # fmt: skip
FIT = FitConfig(epochs=2, batch_size=16, progress=False, num_negatives=8, data_devices=1)
TEACHER = ModelConfig(dim=16, layers=1, heads=2)
STUDENT = ModelConfig(dim=8, layers=1, heads=2)


IMAGES = DataConfig(synthetic_users=120)
TEXTS = DataConfig(synthetic_users=120, max_length=12, vocab_size=320)


def data_for(family):
  if family in (*tasks.TEXT_FAMILIES, *tasks.LANGUAGE_FAMILIES):
    return TEXTS
  return {"mlp": CLICKS, "resnet": IMAGES, "speech_gru": IMAGES}.get(family, DATA)


def binary(job, *arguments, check=True):
  """Runs a binary as a user does."""
  root = pathlib.Path(__file__).parents[2]
  return subprocess.run(
    [sys.executable, "-m", f"experiments.{job}", *arguments],
    cwd=root, env={**os.environ, "XLA_FLAGS": ""}, capture_output=True, text=True, check=check,
  )  # fmt: skip


def train_config(family="sasrec", **fit):
  import dataclasses

  model = dataclasses.replace(TEACHER, model=family)
  return train.Config(data_for(family), model, dataclasses.replace(FIT, **fit))


def distill_config(teacher, family="sasrec", fit=FIT, **options):
  import dataclasses

  return distill.Config(
    (str(teacher),),
    data_for(family),
    dataclasses.replace(STUDENT, model=family),
    DistillConfig(**options),
    fit,
  )


def compress_config(**options):
  return compress.Config(
    seeds=(0, 1),
    requests=5,
    batches=2,
    data=DATA,
    teacher=TEACHER,
    teacher_fit=FIT,
    student=STUDENT,
    student_fit=FIT,
    prune=PruneConfig(sparsity=0.5, keep_mlp=0.5),
    recovery_fit=FIT,
    **options,
  )
