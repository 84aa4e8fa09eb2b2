"""What a sweep looks like on W&B, as code: a workspace for exploring, and a report for reading."""

from collections.abc import Sequence
from typing import Any

import wandb_workspaces.reports.v2 as wr
import wandb_workspaces.workspaces as ws

_LOSS_X = "trainer/global_step"
FINAL = "Final table and figure"


def make_workspace(
    sweep: str, *, entity: str, project: str, prompts: Sequence[str]
) -> ws.Workspace:
    """The saved view of a sweep: the runs of its group alone, by segmenter and condition."""
    return ws.Workspace(
        entity=entity,
        project=project,
        name=f"sonosweep: {sweep}"[:128],
        sections=[
            ws.Section(name=name, panels=panels, is_open=True)
            for name, panels in _sections(prompts).items()
        ],
        settings=ws.WorkspaceSettings(max_runs=50),
        runset_settings=ws.RunsetSettings(
            filters=[ws.Metric("Group") == sweep],
            groupby=[ws.Config("arm")],
            pinned_columns=[f"summary:dice/{prompts[0]}", "config:n_real.value"],
        ),
    )


def make_report(sweep: str, *, entity: str, project: str, prompts: Sequence[str]) -> wr.Report:
    """A page to read: the workspace's sections, and the final table."""
    sections = _sections(prompts)
    sections[FINAL].append(wr.WeavePanelSummaryTable(table_name="results"))
    where = {"entity": entity, "project": project}
    runs = wr.Runset(**where, name=sweep, filters=[ws.Metric("Group") == sweep])
    introduction = (
        "Each point is the mean over trials of one segmenter, condition and amount on the main "
        "test set; intervals and tests are in the sweep's own report.html."
    )
    blocks = [wr.TableOfContents(), wr.P(introduction)]
    for name, panels in sections.items():
        blocks += [wr.H1(name), wr.PanelGrid(runsets=[runs], panels=panels)]
    return wr.Report(
        **where,
        title=f"sonosweep: {sweep}"[:128],
        description="Scores of a sweep, by condition and number of real images.",
        blocks=blocks,
    )


def _sections(prompts: Sequence[str]) -> dict[str, list[Any]]:
    """Panels by heading."""
    # The mean over runs, a line a segmenter and condition, shaded by its extremes.
    by_condition = {
        "groupby": wr.Config("arm"),
        "groupby_aggfunc": "mean",
        "groupby_rangefunc": "minmax",
    }
    found: dict[str, list[Any]] = {"dice": [], "hc_abs_err_mm": []}
    for measure, panels in found.items():
        panels += [
            wr.LinePlot(
                title=f"{measure} against real images, {prompt}",
                x="n_real",
                y=[f"{measure}/{prompt}"],
                title_x="real images",
                title_y=measure,
                **by_condition,
            )
            for prompt in prompts
        ]
    for prompt in prompts:
        dice, error = (wr.SummaryMetric(f"{measure}/{prompt}") for measure in found)
        title = f"dice, a point a trial, {prompt}"
        found["dice"].append(wr.ScatterPlot(title=title, x=wr.Config("n_real"), y=dice))
        title = f"hc_abs_err_mm by condition, {prompt}"
        found["hc_abs_err_mm"].append(wr.BarPlot(title=title, metrics=[error], **by_condition))
    curves = [
        wr.LinePlot(title=f"{name} by condition", x=_LOSS_X, y=[name], **by_condition)
        for name in ("train/loss", "val/dice")
    ]
    pictures = wr.MediaBrowser(title="predictions and references", media_keys=["overlays"])
    return {
        "Dice against the number of real images": found["dice"],
        "Error of the head circumference": found["hc_abs_err_mm"],
        FINAL: [wr.MediaBrowser(title="figure", media_keys=["figure"])],
        "Loss curves": curves,
        "Predictions on fixed test images": [pictures],
        "What differs between the runs": [wr.RunComparer(diff_only=True)],
    }
