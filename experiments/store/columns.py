"""Columns of the per-image results. Torch-free."""

OUTPUTS = ("mask", "ellipse")
"""What a prediction is scored as, a row each: the mask as it is, and the ellipse fitted to it."""

PER_IMAGE = (
    "test_cohort",
    "prompt",
    "draw",
    "output",
    "sample_id",
    "exam_id",
    "trimester",
    "found",
    "fitted",
    "dice",
    "dice_256",
    "hausdorff_mm",
    "hc_pred_mm",
    "hc_ref_mm",
    "hc_err_mm",
    "hc_abs_err_mm",
)
