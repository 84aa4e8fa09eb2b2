"""Columns of the per-image results. Torch-free."""

PER_IMAGE = (
    "test_cohort",
    "prompt",
    "draw",
    "sample_id",
    "exam_id",
    "trimester",
    "found",
    "dice",
    "dice_256",
    "hausdorff_mm",
    "hc_pred_mm",
    "hc_ref_mm",
    "hc_err_mm",
    "hc_abs_err_mm",
)
