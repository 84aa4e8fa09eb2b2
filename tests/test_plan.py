"""The plan: what is shared, what an id depends on, and whose labels a row counts."""

import dataclasses

import pytest

from datamodules.errors import InputError
from datamodules.splits import Split, Unit, support_order
from experiments.nodes import DataView, Plan
from experiments.plan import make_plan
from experiments.recipe import load_config

N_TRAIN = 46


def make_data(**changes) -> DataView:
    units = {
        f"{number:03d}_HC": Unit(
            sample_id=f"{number:03d}_HC",
            group_id=f"{number:03d}",
            exam_id=f"{number:03d}",
            frame=1,
            stratum=number % 3 + 1,
        )
        for number in range(N_TRAIN + 32)
    }
    ids = list(units)
    data = DataView(
        name="hc18",
        units=units,
        content={sample_id: f"hash-{sample_id}" for sample_id in ids},
        references={sample_id: f"reference-{sample_id}" for sample_id in ids},
        split=Split(
            train=tuple(ids[:N_TRAIN]),
            val=tuple(ids[N_TRAIN : N_TRAIN + 10]),
            test=tuple(ids[N_TRAIN + 10 :]),
        ),
        cohorts={},
    )
    return dataclasses.replace(data, **changes)


def plan(*overrides: str, data: DataView | None = None) -> Plan:
    return make_plan(load_config("demo", list(overrides)), data or make_data())


def stages(made: Plan) -> dict[str, int]:
    counts: dict[str, int] = {}
    for node in made.nodes.values():
        counts[node.stage] = counts.get(node.stage, 0) + 1
    return counts


def test_the_demo_shares_one_generator_and_its_gate_uses_the_full_real_trial():
    made = plan()
    assert stages(made) == {
        "embed": 2,
        "generator": 1,
        "synthesize": 1,
        "gate": 1,
        "trial": 6,
        "control": 1,
    }
    gate = next(node for node in made.nodes.values() if node.stage == "gate")
    full = next(s for s in made.trials if s.condition == "real" and s.n_real == N_TRAIN)
    assert gate.upstream["segmenter"] == full.node_key


def test_every_stage_follows_its_inputs():
    seen = set()
    for key, node in plan().nodes.items():
        assert set(node.upstream.values()) <= seen
        seen.add(key)


def test_same_budget_fits_a_generator_for_each_amount_on_the_trials_own_images():
    made = plan("sweep.condition=[synthetic_same_budget]", "sweep.real_fraction=[0.25,0.5]")
    generators = [node for node in made.nodes.values() if node.stage == "generator"]
    assert sorted(len(node.content["images"]) for node in generators) == [12, 23]
    for spec in made.trials:
        assert spec.n_generator_labels == spec.n_real == spec.n_total_labels


def test_rows_count_distinct_labels():
    made = plan("sweep.real_fraction=[0.1]", "synthesis.generator_count=20")
    real, synthetic = made.trials
    assert (real.n_real, real.n_generator_labels, real.n_total_labels) == (5, 0, 5)
    # Same support: the trial's 5 images are among the generator's 20.
    assert (synthetic.n_generator_labels, synthetic.n_total_labels) == (20, 20)
    other = plan("sweep.real_fraction=[0.1]", "synthesis.generator_count=20", "sweep.support=[1]")
    units = list(make_data().units.values())[:N_TRAIN]
    union = {*support_order(units, support=1)[:5], *support_order(units, support=0)[:20]}
    assert other.trials[1].n_total_labels == len(union) > 20


def test_validation_labels_count_only_where_they_choose():
    assert plan().trials[0].n_val_labels == 0
    early = plan("segmenter.early_stopping_patience=3")
    assert early.trials[0].n_val_labels == 10
    assert early.trials[0].n_total_labels == early.trials[0].n_real + 10


def test_paths_devices_and_dashboards_do_not_change_ids():
    base = plan()
    same = plan(
        "data.root=/elsewhere",
        "store.root=/tmp/other",
        "trainer.threads=1",
        "trainer.num_workers=2",
        "trainer.checkpoint_every=7",
        "sweep.workers=2",
        "wandb.mode=disabled",
        "name=other",
    )
    assert list(same.nodes) == list(base.nodes)


@pytest.mark.parametrize(
    ("override", "changed"),
    [
        ("segmenter.steps=41", {"trial", "gate"}),
        ("segmenter.learning_rate=0.01", {"trial", "gate"}),
        ("segmenter.encoder_precision=bf16", {"embed", "trial", "gate"}),
        ("generator.steps=123", {"generator", "synthesize", "embed", "gate", "trial"}),
        ("synthesis.sampler.guidance_scale=1", {"synthesize", "embed", "gate", "trial"}),
        ("gate.min_agreement=0.1", {"gate", "trial"}),
        ("evaluation.jitter_draws=9", {"trial", "gate", "control"}),
        ("sweep.seed=[5]", {"trial"}),
        ("segmenter.backbone=tiny", {"embed", "trial", "gate", "control"}),
    ],
)
def test_a_setting_changes_the_ids_of_what_depends_on_it(override, changed):
    base, other = plan(), plan(override)
    moved = {node.stage for key, node in other.nodes.items() if key not in base.nodes}
    assert moved == changed


def test_changed_pixels_change_everything_that_read_them():
    data = make_data()
    touched = data.split.test[0]
    changed = make_data(
        content={**data.content, touched: "other"},
        references={**data.references, touched: "other"},
    )
    base, other = plan(data=data), plan(data=changed)
    moved = {node.stage for key, node in other.nodes.items() if key not in base.nodes}
    # The generator never saw the test image.
    assert "generator" not in moved
    assert {"embed", "trial", "control"} <= moved


def test_a_corrected_pixel_size_is_scored_again_and_nothing_is_embedded_again():
    data = make_data()
    touched = data.split.test[0]
    changed = make_data(references={**data.references, touched: "other"})
    base, other = plan(data=data), plan(data=changed)
    moved = {node.stage for key, node in other.nodes.items() if key not in base.nodes}
    assert moved == {"trial", "gate", "control"}


def test_the_seed_of_the_generator_is_no_axis_of_real_trials():
    made = plan("sweep.generator_seed=[0,1]", "sweep.real_fraction=[0.5]")
    assert [spec.condition for spec in made.trials] == ["real", "synthetic", "synthetic"]


def test_foreign_pairs_need_no_generator_and_no_gate():
    made = plan("sweep.condition=[synthetic]", data=make_data(foreign_pairs={"a": "1", "b": "2"}))
    assert stages(made) == {"import_pairs": 1, "embed": 2, "trial": 3, "control": 1}
    assert made.trials[0].n_generator_labels is None
    assert made.trials[0].n_total_labels is None


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["sweep.real_count=[47]", "sweep.real_fraction=[]"], "sweep.real_count=47.*46"),
        (["synthesis.generator_count=47"], "synthesis.generator_count=47.*46"),
        (["sweep.real_fraction=[0.5]", "sweep.real_count=[23]"], "two amounts.*23"),
        (["sweep.real_fraction=[0.5,0.501]"], "two amounts.*23"),
    ],
)
def test_amounts_that_cannot_be_are_refused(overrides, words):
    with pytest.raises(InputError, match=words):
        plan(*overrides)
