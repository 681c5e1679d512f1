"""Distillation losses and their supervised partners, in one grammar."""

from kdjax.losses.catalog import (
  catalog_cross_entropy_loss,
  catalog_distillation_loss,
  catalog_kl_loss,
)
from kdjax.losses.features import Helper, hint_loss, projector
from kdjax.losses.logits import (
  bernoulli_kl_loss,
  binary_cross_entropy_loss,
  cross_entropy_loss,
  kl_loss,
  logit_mse_loss,
)
from kdjax.losses.ranking import bpr_loss, sampled_softmax_loss

__all__ = [
  "Helper",
  "bernoulli_kl_loss",
  "binary_cross_entropy_loss",
  "bpr_loss",
  "catalog_cross_entropy_loss",
  "catalog_distillation_loss",
  "catalog_kl_loss",
  "cross_entropy_loss",
  "hint_loss",
  "kl_loss",
  "logit_mse_loss",
  "projector",
  "sampled_softmax_loss",
]
