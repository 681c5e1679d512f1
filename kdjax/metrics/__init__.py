"""How well a model does: alone, against its teacher, and with what certainty."""

from kdjax.metrics.agreement import (
  catalog_kl_metric,
  kendall_metric,
  kl_metric,
  overlap_metric,
  top1_metric,
)
from kdjax.metrics.catalog import TopK, rank_targets, rank_targets_with, top_k, top_k_with
from kdjax.metrics.classification import (
  accuracy_metric,
  auc_metric,
  binary_accuracy_metric,
  binary_f1_metric,
  binary_log_loss_metric,
  binary_precision_metric,
  binary_recall_metric,
  log_loss_metric,
)
from kdjax.metrics.exposure import coverage, gini, log_popularity, popularity
from kdjax.metrics.ranking import (
  exponential_gain,
  hit_rate_metric,
  map_metric,
  mrr_metric,
  ndcg_metric,
  precision_metric,
  recall_metric,
)
from kdjax.metrics.ranks import Ranks, per_user, rank_lists, summarize
from kdjax.metrics.sampled import sampled_rank_targets
from kdjax.metrics.statistics import Comparison, Interval, bootstrap_interval, paired_test
from kdjax.metrics.transcripts import ctc_decode, edit_distance

__all__ = [
  "Comparison",
  "Interval",
  "Ranks",
  "TopK",
  "accuracy_metric",
  "auc_metric",
  "binary_accuracy_metric",
  "binary_f1_metric",
  "binary_log_loss_metric",
  "binary_precision_metric",
  "binary_recall_metric",
  "bootstrap_interval",
  "catalog_kl_metric",
  "coverage",
  "ctc_decode",
  "edit_distance",
  "exponential_gain",
  "gini",
  "hit_rate_metric",
  "kendall_metric",
  "kl_metric",
  "log_loss_metric",
  "log_popularity",
  "map_metric",
  "mrr_metric",
  "ndcg_metric",
  "overlap_metric",
  "paired_test",
  "per_user",
  "popularity",
  "precision_metric",
  "rank_lists",
  "rank_targets",
  "rank_targets_with",
  "recall_metric",
  "sampled_rank_targets",
  "summarize",
  "top1_metric",
  "top_k",
  "top_k_with",
]
