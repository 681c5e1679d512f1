"""Distillation losses and their supervised partners, in one grammar."""

import difflib

from kdjax.losses.activations import activation_boundary_loss, negative_margin, overhaul_loss
from kdjax.losses.attention import (
  attention_mse_loss,
  attention_relation_loss,
  attention_transfer_loss,
  self_relation_loss,
)
from kdjax.losses.candidates import (
  Candidates,
  sample_corrections,
  sample_ranked,
  sample_rankings,
  sample_relaxed_candidates,
  sample_uninteresting,
)
from kdjax.losses.catalog import (
  catalog_cross_entropy_loss,
  catalog_distillation_loss,
  catalog_kl_loss,
)
from kdjax.losses.catalog_cached import catalog_cached_distillation_loss
from kdjax.losses.catalog_divergences import (
  catalog_jensen_shannon_loss,
  catalog_reverse_kl_loss,
)
from kdjax.losses.catalog_targets import catalog_sample_targets, catalog_top_k_targets
from kdjax.losses.catalog_top_k import (
  catalog_sampled_cross_entropy_loss,
  catalog_top_k_kl_loss,
  catalog_top_k_reverse_kl_loss,
)
from kdjax.losses.connectors import factor_decoder, factor_encoder, reviewer, variational_regressor
from kdjax.losses.contrastive import (
  MemoryBank,
  contrast_ids,
  crd_loss,
  info_nce_loss,
  init_memory,
  memory_normalizer,
  update_memory,
)
from kdjax.losses.correlation import dist_loss
from kdjax.losses.decoupled import decoupled_loss, normalized_decoupled_loss
from kdjax.losses.divergences import (
  cosine_probability_loss,
  jensen_shannon_loss,
  reverse_kl_loss,
  skew_kl_loss,
  skew_reverse_kl_loss,
  total_variation_loss,
)
from kdjax.losses.expert_selection import expert_groups, expert_temperature, experts
from kdjax.losses.features import (
  Helper,
  cosine_feature_loss,
  hint_loss,
  patient_loss,
  projector,
  variational_loss,
)
from kdjax.losses.kernels import gaussian_kernel, linear_kernel, polynomial_kernel
from kdjax.losses.listwise import (
  listmle_loss,
  listnet_loss,
  plackett_luce_loss,
  relaxed_ranking_loss,
)
from kdjax.losses.logits import (
  bernoulli_kl_loss,
  binary_cross_entropy_loss,
  cross_entropy_loss,
  kl_loss,
  logit_mse_loss,
  soft_cross_entropy_loss,
)
from kdjax.losses.maps import (
  channel_correlation_loss,
  factor_transfer_loss,
  fsp_loss,
  hierarchical_context_loss,
  neuron_selectivity_loss,
)
from kdjax.losses.pairwise import (
  lambda_loss,
  pairwise_hinge_loss,
  ranknet_loss,
  stratified_pair_loss,
)
from kdjax.losses.policy import importance_weights, policy_loss, policy_returns, sampling_logits
from kdjax.losses.rank_weights import (
  UNRANKED,
  both_recommend,
  candidate_ranks,
  discrepancy_weights,
  estimate_ranks,
  position_weights,
  reverse_discrepancy_weights,
)
from kdjax.losses.ranking import (
  bpr_loss,
  margin_mse_loss,
  nce_loss,
  sampled_softmax_loss,
)
from kdjax.losses.ranking_distillation import (
  collaborative_loss,
  importance_ranking_loss,
  ranking_distillation_loss,
)
from kdjax.losses.relations import (
  cka_loss,
  correlation_congruence_loss,
  linear_cka,
  probabilistic_transfer_loss,
  rkd_angle_loss,
  rkd_distance_loss,
  similarity_preserving_loss,
)
from kdjax.losses.sampled_rest import Negatives, sampled_log_rest
from kdjax.losses.sampled_targets import SampledTargets, sample_targets, sampled_cross_entropy_loss
from kdjax.losses.sequence import (
  mix_sequences,
  raise_on_policy_fraction,
  sequence_loss,
  sequence_mean,
  sequence_totals,
  token_log_probs,
)
from kdjax.losses.speculative import acceptance_rate, expected_tokens
from kdjax.losses.standardized import standardize_logits, standardized_kl_loss
from kdjax.losses.stratified import Pairs, popularity_groups, sample_pairs
from kdjax.losses.supervised import contrastive_loss, ctc_loss
from kdjax.losses.targets import (
  average_logits,
  average_probs,
  confidence_weights,
  label_mixture,
  probability_shift,
  virtual_teacher,
)
from kdjax.losses.top_k import TopK, top_k_kl_loss, top_k_reverse_kl_loss, top_k_targets
from kdjax.losses.topology import group_topology_loss, topology_loss
from kdjax.losses.vocabularies import universal_logit_loss

__all__ = [
  "UNRANKED",
  "Candidates",
  "Helper",
  "MemoryBank",
  "Negatives",
  "Pairs",
  "SampledTargets",
  "TopK",
  "acceptance_rate",
  "activation_boundary_loss",
  "attention_mse_loss",
  "attention_relation_loss",
  "attention_transfer_loss",
  "average_logits",
  "average_probs",
  "bernoulli_kl_loss",
  "binary_cross_entropy_loss",
  "both_recommend",
  "bpr_loss",
  "candidate_ranks",
  "catalog_cached_distillation_loss",
  "catalog_cross_entropy_loss",
  "catalog_distillation_loss",
  "catalog_jensen_shannon_loss",
  "catalog_kl_loss",
  "catalog_reverse_kl_loss",
  "catalog_sample_targets",
  "catalog_sampled_cross_entropy_loss",
  "catalog_top_k_kl_loss",
  "catalog_top_k_reverse_kl_loss",
  "catalog_top_k_targets",
  "channel_correlation_loss",
  "cka_loss",
  "collaborative_loss",
  "confidence_weights",
  "contrast_ids",
  "contrastive_loss",
  "correlation_congruence_loss",
  "cosine_feature_loss",
  "cosine_probability_loss",
  "crd_loss",
  "cross_entropy_loss",
  "ctc_loss",
  "decoupled_loss",
  "discrepancy_weights",
  "dist_loss",
  "estimate_ranks",
  "expected_tokens",
  "expert_groups",
  "expert_temperature",
  "experts",
  "factor_decoder",
  "factor_encoder",
  "factor_transfer_loss",
  "fsp_loss",
  "gaussian_kernel",
  "group_topology_loss",
  "hierarchical_context_loss",
  "hint_loss",
  "importance_ranking_loss",
  "importance_weights",
  "info_nce_loss",
  "init_memory",
  "jensen_shannon_loss",
  "kl_loss",
  "label_mixture",
  "lambda_loss",
  "linear_cka",
  "linear_kernel",
  "listmle_loss",
  "listnet_loss",
  "logit_mse_loss",
  "margin_mse_loss",
  "memory_normalizer",
  "mix_sequences",
  "nce_loss",
  "negative_margin",
  "neuron_selectivity_loss",
  "normalized_decoupled_loss",
  "overhaul_loss",
  "pairwise_hinge_loss",
  "patient_loss",
  "plackett_luce_loss",
  "policy_loss",
  "policy_returns",
  "polynomial_kernel",
  "popularity_groups",
  "position_weights",
  "probabilistic_transfer_loss",
  "probability_shift",
  "projector",
  "raise_on_policy_fraction",
  "ranking_distillation_loss",
  "ranknet_loss",
  "relaxed_ranking_loss",
  "reverse_discrepancy_weights",
  "reverse_kl_loss",
  "reviewer",
  "rkd_angle_loss",
  "rkd_distance_loss",
  "sample_corrections",
  "sample_pairs",
  "sample_ranked",
  "sample_rankings",
  "sample_relaxed_candidates",
  "sample_targets",
  "sample_uninteresting",
  "sampled_cross_entropy_loss",
  "sampled_log_rest",
  "sampled_softmax_loss",
  "sampling_logits",
  "self_relation_loss",
  "sequence_loss",
  "sequence_mean",
  "sequence_totals",
  "similarity_preserving_loss",
  "skew_kl_loss",
  "skew_reverse_kl_loss",
  "soft_cross_entropy_loss",
  "standardize_logits",
  "standardized_kl_loss",
  "stratified_pair_loss",
  "token_log_probs",
  "top_k_kl_loss",
  "top_k_reverse_kl_loss",
  "top_k_targets",
  "topology_loss",
  "total_variation_loss",
  "universal_logit_loss",
  "update_memory",
  "variational_loss",
  "variational_regressor",
  "virtual_teacher",
]


def __getattr__(name: str) -> object:
  near = difflib.get_close_matches(name, __all__, n=1)
  hint = f"; did you mean {near[0]!r}?" if near else ""
  raise AttributeError(f"module {__name__!r} has no attribute {name!r}{hint}")
