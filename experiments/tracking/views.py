"""What a sweep looks like on W&B, as code: a workspace for exploring, and a report for reading."""

from collections.abc import Sequence
from dataclasses import dataclass

import wandb_workspaces.reports.v2 as wr
import wandb_workspaces.workspaces as ws

_LOSS_X = "trainer/global_step"


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
            ws.Section(
                name="Dice against amount",
                panels=[
                    panel
                    for prompt in prompts
                    for panel in (_against_amount("dice", prompt), _scatter("dice", prompt))
                ],
                is_open=True,
            ),
            ws.Section(
                name="HC error",
                panels=[
                    panel
                    for prompt in prompts
                    for panel in (_against_amount("hc_abs_err_mm", prompt), _bars(prompt))
                ],
                is_open=True,
            ),
            ws.Section(name="Loss curves", panels=_curves(), is_open=True),
            ws.Section(name="Predictions", panels=_media(), is_open=True),
            ws.Section(name="What differs", panels=[wr.RunComparer(diff_only=True)]),
        ],
        settings=ws.WorkspaceSettings(max_runs=50),
        runset_settings=ws.RunsetSettings(
            filters=[ws.Metric("Group") == place.sweep],
            groupby=[ws.Config("condition")],
            pinned_columns=[f"summary:dice/{prompts[0]}", "config:n_real.value"],
        ),
    )


def make_report(place: Place, *, prompts: Sequence[str]) -> wr.Report:
    """A page to read: Dice and HC error against the amount, the final table, and the pictures.

    Args:
        place: Where.
        prompts: Prompts under which trials were scored; at least one.
    """
    first = prompts[0]
    return wr.Report(
        entity=place.entity,
        project=place.project,
        title=f"sonosweep: {place.sweep}"[:128],
        description="Scores of a sweep, by condition and number of real images.",
        blocks=[
            wr.TableOfContents(),
            wr.H1("Dice against the number of real images"),
            wr.P(
                "Each point is the mean over trials of one condition and amount on the main test "
                "set; intervals and tests are in the sweep's own report.html."
            ),
            _grid(place, [_against_amount("dice", prompt) for prompt in prompts]),
            wr.H1("Error of the head circumference"),
            _grid(place, [_against_amount("hc_abs_err_mm", prompt) for prompt in prompts]),
            wr.H1("Final table and figure"),
            _grid(
                place,
                [
                    wr.MediaBrowser(title="figure", media_keys=["figure"]),
                    wr.WeavePanelSummaryTable(table_name="results"),
                ],
            ),
            wr.H1("Loss curves"),
            _grid(place, _curves()),
            wr.H1("Predictions on fixed test images"),
            _grid(place, [wr.MediaBrowser(title=f"overlays, {first}", media_keys=["overlays"])]),
            wr.H1("What differs between the runs"),
            _grid(place, [wr.RunComparer(diff_only=True)]),
        ],
    )


def _against_amount(measure: str, prompt: str) -> wr.LinePlot:
    """The mean of a measure over real images, a line a condition, shaded by its extremes."""
    return wr.LinePlot(
        title=f"{measure} against real images, {prompt}",
        x="n_real",
        y=[f"{measure}/{prompt}"],
        title_x="real images",
        title_y=measure,
        groupby=wr.Config("condition"),
        groupby_aggfunc="mean",
        groupby_rangefunc="minmax",
    )


def _scatter(measure: str, prompt: str) -> wr.ScatterPlot:
    return wr.ScatterPlot(
        title=f"{measure}, a point a trial, {prompt}",
        x=wr.Config("n_real"),
        y=wr.SummaryMetric(f"{measure}/{prompt}"),
    )


def _bars(prompt: str) -> wr.BarPlot:
    return wr.BarPlot(
        title=f"hc_abs_err_mm by condition, {prompt}",
        metrics=[wr.SummaryMetric(f"hc_abs_err_mm/{prompt}")],
        groupby=wr.Config("condition"),
        groupby_aggfunc="mean",
        groupby_rangefunc="minmax",
    )


def _curves() -> list[wr.LinePlot]:
    return [
        wr.LinePlot(
            title=f"{name} by condition",
            x=_LOSS_X,
            y=[name],
            groupby=wr.Config("condition"),
            groupby_aggfunc="mean",
            groupby_rangefunc="minmax",
        )
        for name in ("train/loss", "val/dice")
    ]


def _media() -> list[wr.MediaBrowser]:
    return [
        wr.MediaBrowser(title="predictions and references", media_keys=["overlays"]),
        wr.MediaBrowser(title="figure", media_keys=["figure"]),
    ]


def _grid(place: Place, panels: list) -> wr.PanelGrid:
    runs = wr.Runset(
        entity=place.entity,
        project=place.project,
        name=place.sweep,
        filters=[ws.Metric("Group") == place.sweep],
    )
    return wr.PanelGrid(runsets=[runs], panels=panels)
