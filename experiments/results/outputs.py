"""From finished stages to a sweep's outputs. What is written here can always be written again."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from rich.console import Console
from rich.panel import Panel
from rich.text import Text

from datamodules.integrity import FILES, damaged_file, file_facts, read_sealed, sealed
from datamodules.storage import content_key, write_atomic, write_json
from experiments.config.schema import resolved
from experiments.config.statistics import StatisticsConfig
from experiments.config.wandb_mode import resolve_mode
from experiments.config.words import counted
from experiments.results.rows import KEYS, TESTED, choose_output, read_csv, with_defaults
from experiments.results.statistics import add_trials, aggregate
from experiments.runner.progress import clock
from experiments.runner.sweep import NodeRun, Sweep
from experiments.store.columns import PER_IMAGE
from experiments.store.provenance import code_state

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from experiments.results.contrasts import Contrasts

OUTPUTS = ("results.csv", "per_image.csv", "table.md", "table.tex", "figure.png", "figure.pdf")
OUTPUTS += ("report.html",)
COMPARISON = ("table_paper.md", "table_paper.tex", "table_paper.csv")
COMPARISON += ("figure_paper.png", "figure_paper.pdf")
"""Written beside them where the paper has numbers to compare with."""

_WHOLE = ("support", "seed", "generator_seed", "fold", "draw", "trimester", "steps")
"""Columns of whole numbers, beside those that begin with `n_`."""


def collect_per_image(sweep: Sweep) -> pd.DataFrame:
    """Rows of every scored trial and control, with their axes; may be empty."""
    # The cohort and the prompt are in both.
    columns, parts = [*dict.fromkeys([*KEYS, *PER_IMAGE])], []
    # Of the data as they are now: a score may be older than the exams that a CSV names.
    exams = _exams(sweep)
    for spec in sweep.plan.trials:
        for run in (sweep.runs[key] for key in spec.score_keys.values()):
            if run.is_done:
                rows = read_csv(sweep.run_dir(run) / "per_image.csv").assign(**spec.axes)
                known = rows["sample_id"].map(exams)
                rows["exam_id"] = known.where(known.notna(), rows["exam_id"])
                # A column without any value must not decide the type of the others.
                parts.append(rows.dropna(axis="columns", how="all"))
    if not parts:
        return pd.DataFrame(columns=columns)
    return with_defaults(pd.concat(parts, ignore_index=True)).reindex(columns=columns)


def _exams(sweep: Sweep) -> dict[str, str]:
    """The exam of each image."""
    return {name: sample.exam_id for name, sample in sweep.data.samples.items()}


def collect_trials(sweep: Sweep) -> pd.DataFrame:
    """A row for each cohort and prompt that a trial is scored under: its axes, status and reason;
    what the whole trial cost, seconds of fitting and scoring; the stages behind the row, fit_id
    (absent for a control) and score_id, as `stage/id`; and a hash of the images that it is scored
    on and of their references."""
    rows = []
    for spec in sweep.plan.trials:
        runs = [sweep.runs[key] for key in spec.keys]
        results = [sweep.result(run) for run in runs if run.is_done]
        is_done = len(results) == len(runs)
        fitted = results[0] if results and not spec.is_control else {}
        cost = {
            "n_synthetic": fitted.get("n_synthetic"),
            "steps": fitted.get("steps"),
            "seconds": sum(result["seconds"] for result in results) if is_done else None,
            "peak_memory_mib": max((r["peak_memory_mib"] for r in results), default=None),
        }
        for (cohort, prompt), key in spec.score_keys.items():
            needed = [sweep.runs[each] for each in (spec.fit_key, key) if each is not None]
            # A score outlives its fit, which may be damaged or gone.
            needed = needed[-1:] if needed[-1].is_done else needed
            tested = content_key(sorted(sweep.plan.nodes[key].content["test"]))
            row = spec.axes | {"test_cohort": cohort, "prompt": prompt} | _status(needed) | cost
            rows.append(row | {"fit_id": spec.fit_key, "score_id": key, TESTED: tested})
    frame = pd.DataFrame(rows)
    # A column of nothing but None would be one of objects.
    return frame.where(frame.notna(), np.nan).infer_objects()


def _status(runs: Sequence[NodeRun]) -> dict[str, str]:
    broken = [run for run in runs if run.state in ("failed", "blocked")]
    is_done = all(run.is_done for run in runs)
    return {
        "status": "done" if is_done else "failed" if broken else "pending",
        "reason": broken[0].reason if broken else "",
    }


def write_tables_csv(sweep: Sweep, folder: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Write per_image.csv and results.csv of both outputs; give the rows of the one to show."""
    per_image = collect_per_image(sweep)
    aggregated = aggregate(per_image, n_boot=sweep.config.statistics.bootstrap_samples)
    results = add_trials(aggregated, trials=collect_trials(sweep))
    write_atomic(folder / "per_image.csv", csv_text(per_image))
    write_atomic(folder / "results.csv", csv_text(results))
    output = sweep.config.evaluation.output
    return choose_output(per_image, output), choose_output(results, output)


def csv_text(rows: pd.DataFrame) -> str:
    """As CSV; whole numbers stay whole where some are missing, as those of controls are."""
    whole = {
        name: "Int64"
        for name in rows.select_dtypes("float")
        if (name in _WHOLE or name.startswith("n_")) and (rows[name].dropna() % 1 == 0).all()
    }
    return rows.astype(whole).to_csv(index=False)


def write_outputs(sweep: Sweep, console: Console, *, log: Callable[..., str | None]) -> None:
    """Write every output of a sweep, log it, and say what was found and which file to open.

    Nothing is written again where nothing has changed since the last time; a file that is not what
    was written then is. `log` is called as `tracking.summary.log_sweep` is.
    """
    folder = sweep.store.sweep_dir(sweep.config.name)
    folder.mkdir(parents=True, exist_ok=True)
    states = [[key, run.is_done, run.reason] for key, run in sweep.runs.items()]
    axes = [spec.axes for spec in sweep.plan.trials]
    key = content_key([states, axes, resolved(sweep.config), code_state(), _exams(sweep)])
    marker = folder / "outputs.json"
    known = _known_outputs(marker, key=key, say=sweep.say)
    if known is None:
        with console.status("writing tables, figure and report"):
            finding = _write_all(sweep, folder)
        written = [name for name in (*OUTPUTS, *COMPARISON) if (folder / name).is_file()]
        known = {"key": key, "finding": finding, FILES: file_facts(folder, written)}
        write_json(marker, sealed(known))
    with console.status("logging to W&B"):
        trouble = log(sweep, key=key, finding=known["finding"])
    if trouble is not None:
        console.print(trouble, markup=False, highlight=False, soft_wrap=True)
    _last_screen(sweep, console, folder=folder, finding_text=known["finding"])


def _known_outputs(marker: Path, *, key: str, say: Callable[[str], None]) -> dict[str, Any] | None:
    """What was written under a key and is there still; None where anything is to be written."""
    if not marker.is_file():
        return None
    known = read_sealed(marker)
    if known is None:
        say(f"{marker}: cannot be read, so the outputs are written anew")
    elif known.get("key") == key and FILES in known and "finding" in known:
        found = damaged_file(marker.parent, known[FILES])
        if found is None:
            return known
        say(f"{marker.parent / found}, so the outputs are written anew")
    return None


def _write_all(sweep: Sweep, folder: Path) -> str:
    from experiments.results.deviations import deviations
    from experiments.results.panels import png_bytes
    from experiments.results.paper import write_comparison
    from experiments.results.report import render_report
    from experiments.results.report_content import gather
    from experiments.results.verdict import verdict_sentences

    per_image, results = write_tables_csv(sweep, folder)
    frames, chosen = {"per_image": per_image, "results": results}, sweep.config.statistics
    figure, found = write_shown(**frames, folder=folder, statistics=chosen)
    words = deviations(sweep.config)
    write_comparison(results, folder, train_cohort=sweep.data.name, deviations=words)
    content = gather(sweep, **frames, figure_png=png_bytes(figure))
    page = render_report(content, **frames, contrasts=found, statistics=chosen)
    write_atomic(folder / "report.html", page)
    return " ".join(verdict_sentences(found, results))


def write_shown(
    results: pd.DataFrame, folder: Path, *, per_image: pd.DataFrame, statistics: StatisticsConfig
) -> tuple["Figure", "Contrasts"]:
    """Write table and figure of the rows of one output; give the figure and the contrasts."""
    from experiments.results.contrasts import all_contrasts
    from experiments.results.figures import figure_amounts
    from experiments.results.latex import to_latex
    from experiments.results.panels import save_figure
    from experiments.results.tables import blocks, footnotes
    from experiments.results.text import to_markdown

    tables, notes = blocks(results, per_image=per_image), footnotes(results)
    write_atomic(folder / "table.md", to_markdown(tables, notes=notes))
    write_atomic(folder / "table.tex", to_latex(tables, notes=notes))
    figure = figure_amounts(results, per_image=per_image)
    save_figure(figure, stem=folder / "figure")
    return figure, all_contrasts(per_image, statistics=statistics)


def _last_screen(sweep: Sweep, console: Console, *, folder: Path, finding_text: str) -> None:
    relative = os.path.relpath(folder)
    runs = sweep.runs.values()
    work = "no stage was finished"
    if done := sum(run.state == "done" for run in runs):
        seconds = sum(run.seconds for run in runs)
        work = f"{counted(done, 'stage')} in {clock(seconds)} of work"
    elif all(run.is_done for run in runs):
        work = "nothing was left to do"
    lines = [
        finding_text,
        "",
        f"report   {relative}/report.html",
        f"table    {relative}/table.md (also .tex)",
        f"figure   {relative}/figure.png (also .pdf)",
        f"numbers  {relative}/results.csv, {relative}/per_image.csv",
        "",
        f"{work}; W&B: {resolve_mode(sweep.config.wandb)}",
    ]
    console.print(Panel(Text("\n".join(lines)), title=sweep.config.name, title_align="left"))
