"""The rows of finished stages as outputs read them."""

from types import SimpleNamespace

import pandas as pd

from experiments.columns import PER_IMAGE
from experiments.results import collect_per_image
from experiments.store import RunStore


def test_names_that_pandas_takes_for_missing_values_stay_names(tmp_path):
    store = RunStore(tmp_path)
    folder = store.run_dir("control", "abc")
    folder.mkdir(parents=True)
    row = dict.fromkeys(PER_IMAGE) | {"test_cohort": "NA", "sample_id": "null", "exam_id": "007"}
    row |= {"prompt": "tight_box", "draw": 0, "dice": 0.5, "dice_256": 0.5}
    pd.DataFrame([row]).to_csv(folder / "per_image.csv", index=False)
    node = SimpleNamespace(stage="control", id="abc")
    sweep = SimpleNamespace(
        plan=SimpleNamespace(trials=[], control_key="control/abc"),
        runs={"control/abc": SimpleNamespace(state="done", node=node)},
        store=store,
    )
    (found,) = collect_per_image(sweep).to_dict("records")
    assert (found["test_cohort"], found["sample_id"], found["exam_id"]) == ("NA", "null", "007")
    assert (found["condition"], found["dice"]) == ("box_only", 0.5)
