"""Every segmenter under every condition with every kind of generator, from plan to table."""

import pandas as pd
import pytest
from folder_parts import write_hc18_folder
from sd_parts import tiny_pipeline
from sweep_parts import LEAN, TWO_STEPS, run

from experiments.config.conditions import CONDITIONS as ROWS
from lightning_modules.generators.table import GENERATORS
from lightning_modules.segmenters.table import SEGMENTERS

# Those with unlabelled images need a teacher that finds a head: test_sweep_unlabelled.py.
CONDITIONS = {name: row for name, row in ROWS.items() if not row.factors.uses_unlabelled}
SMALL = (
    *LEAN,
    *TWO_STEPS,
    "split.val=1",
    "sweep.real_fraction=[]",
    "sweep.real_count=[2]",
    f"sweep.condition=[{','.join(CONDITIONS)}]",
    f"sweep.segmenter=[{','.join(SEGMENTERS)}]",
    f"sweep.generator=[{','.join(GENERATORS)}]",
    "sweep.workers=2",
    "synthesis.generator_count=3",
    "stable_diffusion.size_hw=[64,64]",
    "stable_diffusion.lora_rank=2",
    "stable_diffusion.steps=2",
    "stable_diffusion.batch_size=2",
    "stable_diffusion.warmup_steps=1",
    "stable_diffusion.precision=32-true",
    "stable_diffusion.sampler.num_inference_steps=2",
    "wandb.mode=disabled",
)


pytestmark = [pytest.mark.long, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def crossed(tmp_path_factory):
    """The sweep's folder."""
    folder = tmp_path_factory.mktemp("cross")
    base = tiny_pipeline(folder / "base")
    ended = run(
        write_hc18_folder(folder / "hc18"),
        folder / "runs",
        *SMALL,
        f"stable_diffusion.base_model={base}",
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return folder / "runs" / "toy"


def test_every_combination_is_fitted_and_scored(crossed):
    results = pd.read_csv(crossed / "results.csv", keep_default_na=False, na_values={})
    assert set(results["status"]) == {"done"}
    found = {*results[["segmenter", "condition", "generator"]].itertuples(index=False, name=None)}
    expected = {
        (segmenter, condition, generator)
        for segmenter in SEGMENTERS
        for condition, row in CONDITIONS.items()
        for generator in (GENERATORS if row.factors.source.has_generator else [""])
    }
    assert found == expected
    assert results["fit_id"].nunique() == len(expected)
    own = results[results["condition"] == "synthetic_same_budget"]
    assert set(own["pair_labels"]) == {"own"}
    assert set(own["n_total_labels"].astype(float)) == {2.0}


def test_every_segmenter_sees_the_same_pairs(crossed):
    """The gate has a judge of its own: its sets do not depend on what is fitted on them."""
    gates = {path.name for path in (crossed.parent / "store" / "gate").iterdir()}
    # A generator kind's on its fixed images, and one on the trial's own.
    assert len(gates) == 2 * len(GENERATORS)


def test_the_table_names_segmenter_and_generator(crossed):
    head = next(
        line for line in (crossed / "table.md").read_text().splitlines() if line.startswith("| ")
    )
    assert "segmenter" in head
    assert "generator" in head
    table = (crossed / "table.md").read_text()
    assert "U-Net" in table or "unet" in table
    assert "stable_diffusion" in table
