"""The command line. Torch-free: a wrong word is refused before anything heavy is imported."""

import typer

from experiments.commands.arguments import Overrides, Recipe
from experiments.commands.bench import bench
from experiments.commands.data import data_app
from experiments.commands.doctor import doctor
from experiments.commands.models import draw, export, predict, submit
from experiments.commands.outputs import figure, table
from experiments.commands.paper import paper
from experiments.commands.report import report
from experiments.commands.score import score
from experiments.commands.store import clean, dashboard, status
from experiments.commands.sweep import demo, diffusion, segment, sweep, synthesize
from experiments.commands.trial import trial
from experiments.commands.weights import weights_app

app = typer.Typer(
    name="sonosweep",
    help="How much does diffusion-made ultrasound help fetal head segmentation?",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(data_app, name="data")
app.add_typer(weights_app, name="weights")
for command in (
    *(demo, sweep, trial, diffusion, synthesize, segment, report, table, figure, paper),
    *(status, clean, doctor, dashboard, score, submit, export, predict, draw, bench),
):
    app.command()(command)


@app.command("wandb-sweep")
def wandb_sweep(recipe: Recipe, overrides: Overrides = None) -> None:
    """Print a recipe's grid as a sweep for W&B's own agents, whose runs are single trials."""
    from experiments.tracking.agent import sweep_file

    print(sweep_file(recipe, overrides or []), end="")
