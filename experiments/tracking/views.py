"""What a sweep looks like on W&B, as code: a workspace for exploring, and a report for reading."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import wandb_workspaces.reports.v2 as wr
import wandb_workspaces.workspaces as ws

_LOSS_X = "trainer/global_step"
FINAL = "Final table and figure"


@dataclass(frozen=True, kw_only=True)
class Place:
    """A sweep in a project on W&B."""

    entity: str
    project: str
    sweep: str
    """The group of its runs."""


def make_workspace(place: Place, *, prompts: Sequence[str]) -> ws.Workspace:
    """The saved view of a sweep: its runs alone, grouped by condition.

    Args:
        place: Where.
        prompts: Prompts under which trials were scored; at least one.
    """
    return ws.Workspace(
        entity=place.entity,
        project=place.project,
        name=f"sonosweep: {place.sweep}"[:128],
        sections=[
            ws.Section(name=name, panels=panels, is_open=True)
            for name, panels in _sections(prompts).items()
        ],
        settings=ws.WorkspaceSettings(max_runs=50),
        runset_settings=ws.RunsetSettings(
            filters=[ws.Metric("Group") == place.sweep],
            groupby=[ws.Config("condition")],
            pinned_columns=[f"summary:dice/{prompts[0]}", "config:n_real.value"],
        ),
    )


def make_report(place: Place, *, prompts: Sequence[str]) -> wr.Report:
    """A page to read: the workspace's sections, and the final table.

    Args:
        place: Where.
        prompts: Prompts under which trials were scored; at least one.
    """
    sections = _sections(prompts)
    sections[FINAL].append(wr.WeavePanelSummaryTable(table_name="results"))
    runs = wr.Runset(
        entity=place.entity,
        project=place.project,
        name=place.sweep,
        filters=[ws.Metric("Group") == place.sweep],
    )
    introduction = (
        "Each point is the mean over trials of one condition and amount on the main test set; "
        "intervals and tests are in the sweep's own report.html."
    )
    return wr.Report(
        entity=place.entity,
        project=place.project,
        title=f"sonosweep: {place.sweep}"[:128],
        description="Scores of a sweep, by condition and number of real images.",
        blocks=[
            wr.TableOfContents(),
            wr.P(introduction),
            *(
                block
                for name, panels in sections.items()
                for block in (wr.H1(name), wr.PanelGrid(runsets=[runs], panels=panels))
            ),
        ],
    )


def _sections(prompts: Sequence[str]) -> dict[str, list[Any]]:
    """Panels by heading."""
    by_condition = {
        "groupby": wr.Config("condition"),
        "groupby_aggfunc": "mean",
        "groupby_rangefunc": "minmax",
    }

    def lines(measure: str) -> list[Any]:
        """The mean over real images, a line a condition, shaded by its extremes."""
        return [
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

    points = [
        wr.ScatterPlot(
            title=f"dice, a point a trial, {prompt}",
            x=wr.Config("n_real"),
            y=wr.SummaryMetric(f"dice/{prompt}"),
        )
        for prompt in prompts
    ]
    bars = [
        wr.BarPlot(
            title=f"hc_abs_err_mm by condition, {prompt}",
            metrics=[wr.SummaryMetric(f"hc_abs_err_mm/{prompt}")],
            **by_condition,
        )
        for prompt in prompts
    ]
    curves = [
        wr.LinePlot(title=f"{name} by condition", x=_LOSS_X, y=[name], **by_condition)
        for name in ("train/loss", "val/dice")
    ]
    return {
        "Dice against the number of real images": lines("dice") + points,
        "Error of the head circumference": lines("hc_abs_err_mm") + bars,
        FINAL: [wr.MediaBrowser(title="figure", media_keys=["figure"])],
        "Loss curves": curves,
        "Predictions on fixed test images": [
            wr.MediaBrowser(title="predictions and references", media_keys=["overlays"])
        ],
        "What differs between the runs": [wr.RunComparer(diff_only=True)],
    }
