"""What users of other toolkits ran into, and the test that keeps us from it, each by name."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parent
LOSSES = "losses/test_"

# Trap, where it was reported -> test.
TRAPS = {
  "log-probabilities mixed as if they were probabilities (trl #2202)": (
    f"{LOSSES}divergence_losses.py::test_probabilities_are_mixed_and_not_their_logarithms"
  ),
  "weights of a mixture on the wrong side (trl #3043)": (
    f"{LOSSES}divergence_losses.py::test_mixture_weight_is_on_the_side_it_names"
  ),
  "a divergence that jumps at its ends (ms-swift #10078, Liger #278)": (
    f"{LOSSES}divergence_losses.py::test_normalized_jensen_shannon_reaches_its_ends_continuously"
  ),
  "T**2 present or absent": (
    f"{LOSSES}divergence_losses.py::test_hot_temperature_is_matching_of_centred_logits"
  ),
  "a mean that divides by padding too (trl #4105)": (
    f"{LOSSES}sequence_losses.py::test_padding_changes_no_mean"
  ),
  "a mean of means under gradient accumulation (trl #6006)": (
    f"{LOSSES}sequence_losses.py::test_accumulation_over_padded_micro_batches_is_exact"
  ),
  "a mask accepted and ignored (Liger #974)": (
    f"{LOSSES}loss_table.py::test_masked_equals_removed"
  ),
  "masked garbage in the gradient": (
    f"{LOSSES}loss_table.py::test_masked_garbage_reaches_neither_value_nor_gradient"
  ),
  "vocabularies of unequal size (trl #2215, #3028)": (
    f"{LOSSES}divergence_losses.py::test_support_equals_cutting_the_columns"
  ),
  "mass outside of the teacher's top k unpunished (ms-swift #10079)": (
    f"{LOSSES}sequence_losses.py::test_mass_outside_of_the_top_k_is_penalised"
  ),
  "the best k renormalised, and so biased": (
    f"{LOSSES}sequence_losses.py::test_the_best_k_renormalised_are_biased_where_samples_are_not"
  ),
  "two matrices of tokens times vocabulary (DistillKit #4, ModelOpt #1191)": (
    f"{LOSSES}catalog_losses.py::test_no_array_of_tokens_times_items_is_ever_built"
  ),
  "a teacher on one device only (trl #6573)": (
    "train/test_step.py::test_rows_split_over_the_model_axis_give_the_same_step"
  ),
  "masks without smaller arrays (wanda #14, #81)": (
    "prune/test_shrink.py::test_shrunk_equals_masked"
  ),
  "int8 slower than float32 on small products (aqt #325, #514)": (
    "quant/test_plan.py::test_the_plan_is_what_was_measured"
  ),
  "int8 products in another type than int32 (jax #17688)": (
    "quant/test_plan.py::test_compiled_program_multiplies_s8_by_s8_into_s32"
  ),
  "pruning, distillation and int8 not in one path (ModelOpt #1679, #1813)": (
    "experiments/test_binaries.py::test_compress_writes_table_plots_and_models_and_is_resumable"
  ),
  "the best epoch reported as the last (mdistiller #7, #8, #40)": (
    "train/test_loop.py::test_the_best_state_by_validation_is_returned"
  ),
}


@pytest.mark.parametrize("trap", TRAPS)
def test_every_trap_has_its_test(trap):
  path, _, name = TRAPS[trap].partition("::")
  tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
  assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
