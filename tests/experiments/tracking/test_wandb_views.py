"""The workspace and the report of a sweep, as they are sent."""

import json
import subprocess
import sys
from pathlib import Path

from wandb_parts import clean_environment
from wandb_server import WandbServer

from experiments.tracking.views import make_workspace

PLACE = {"entity": "team", "project": "sonosweep"}


def sections():
    model = make_workspace("night 1", **PLACE, prompts=["whole_image", "jittered_box"])._to_model()
    spec = json.loads(model.spec.model_dump_json(by_alias=True, exclude_none=True))
    return spec["section"], {
        section["name"]: [(panel["viewType"], panel["config"]) for panel in section["panels"]]
        for section in spec["section"]["panelBankConfig"]["sections"]
    }


def test_scores_are_drawn_against_the_amount_by_segmenter_and_condition():
    _, found = sections()
    for name, measure in (
        ("Dice against the number of real images", "dice"),
        ("Error of the head circumference", "hc_abs_err_mm"),
    ):
        lines = [config for kind, config in found[name] if kind == "Run History Line Plot"]
        assert [line["metrics"] for line in lines] == [
            [f"{measure}/whole_image"],
            [f"{measure}/jittered_box"],
        ]
        for line in lines:
            assert line["xAxis"] == "n_real"
            assert line["groupBy"].startswith("arm")
            assert line["groupAgg"] == "mean"
    everything = [panel for panels in found.values() for panel in panels]
    (scatter, _) = [config for kind, config in everything if "Scatter" in kind]
    assert scatter["xAxis"] == "config:n_real.value"
    assert scatter["yAxis"] == "summary:dice/whole_image"
    curves = [config for _, config in found["Loss curves"]]
    assert [curve["metrics"] for curve in curves] == [["train/loss"], ["val/dice"]]
    assert {curve["xAxis"] for curve in curves} == {"trainer/global_step"}
    assert {curve["groupBy"] for curve in curves} == {"arm.value"}
    keys = [config["mediaKeys"] for kind, config in everything if kind == "Media Browser"]
    assert keys == [["figure"], ["overlays"]]
    assert everything[-1] == ("Run Comparer", {"diffOnly": True})


def test_the_view_shows_the_runs_of_the_sweep_alone():
    section, _ = sections()
    (runs,) = section["runSets"]
    (only,) = runs["filters"]["filters"]
    assert (only["key"]["name"], only["op"], only["value"]) == ("group", "=", "night 1")
    assert [group["name"] for group in runs["grouping"]] == ["arm.value"]


REPORT = """
from experiments.tracking.views import make_report
make_report("night 1", entity="team", project="sonosweep", prompts=["whole_image"]).save()
"""


def test_the_report_holds_the_curves_table_figure_and_pictures():
    with WandbServer() as server:
        subprocess.run(
            [sys.executable, "-c", REPORT],
            check=True,
            env=clean_environment(**server.environment()),
            cwd=Path(__file__).parents[3],
            timeout=120,
            capture_output=True,
        )
    (sent,) = server.sent("upsertView")
    assert sent["displayName"] == "sonosweep: night 1"
    blocks = json.loads(sent["spec"])["blocks"]
    headings = [b["children"][0]["text"] for b in blocks if b["type"] == "heading"]
    assert headings == list(sections()[1])
    grids = [b["metadata"] for b in blocks if b["type"] == "panel-grid"]
    for grid in grids:
        assert "night 1" in json.dumps(grid["runSets"][0]["filters"])
    panels = [p for grid in grids for p in grid["panelBankSectionConfig"]["panels"]]
    kinds = [panel["viewType"] for panel in panels]
    assert kinds.count("Run History Line Plot") == 4
    assert kinds.count("Media Browser") == 2
    assert "Run Comparer" in kinds
    assert len([kind for kind in kinds if "Weave" in kind]) == 1
