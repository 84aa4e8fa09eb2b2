"""The text of results.csv and per_image.csv."""

import numpy as np
import pandas as pd

from experiments.results.outputs import csv_text


def test_whole_numbers_stay_whole_where_some_are_missing():
    rows = pd.DataFrame(
        {
            "support": [0.0, np.nan],
            "n_generator_labels": [60.0, np.nan],
            "n_not_fitted": [0.5, np.nan],
            "steps": [np.nan, np.nan],
            "hc_pred_mm": [180.0, np.nan],
        }
    )
    lines = csv_text(rows).splitlines()
    assert lines[1:] == ["0,60,0.5,,180.0", ",,,,"]
