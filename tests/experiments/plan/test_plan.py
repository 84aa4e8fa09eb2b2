"""The plan: what is shared, what an id depends on, and whose labels a row counts."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from plan_parts import N_TRAIN, make_data, plan
from toy_recipe import TOY

from datamodules.errors import InputError
from datamodules.splits import Split, support_order
from experiments.config.recipe import load_config
from experiments.plan.grid import box_plan
from experiments.plan.nodes import Plan


def stages(made: Plan) -> dict[str, int]:
    counts: dict[str, int] = {}
    for node in made.nodes.values():
        counts[node.stage] = counts.get(node.stage, 0) + 1
    return counts


def test_the_demo_shares_one_generator_and_its_gate_uses_the_full_real_trial():
    made = plan()
    assert stages(made) == {
        # Three amounts, the mirror images for fidelity, the candidates and the test part.
        "embed": 6,
        "generator": 1,
        "synthesize": 1,
        "gate": 1,
        "fidelity": 1,
        "fit": 6,
        # Six trials and the bare backbone under two prompts.
        "score": 14,
        # The ellipse in the jittered box, and the mean mask.
        "control": 2,
    }
    gate = next(node for node in made.nodes.values() if node.stage == "gate")
    full = next(s for s in made.trials if s.condition == "real" and s.n_real == N_TRAIN)
    assert gate.upstream["segmenter"] == full.fit_key


def test_controls_follow_the_grid_and_name_their_labels():
    made = plan("evaluation.prompts=[whole_image,predicted_box,jittered_box,tight_box]")
    controls = {spec.condition: spec for spec in made.trials if spec.is_control}
    assert list(controls) == ["box_only", "mean_mask", "zero_shot"]
    prompts = {name: {p for _, p in spec.score_keys} for name, spec in controls.items()}
    assert prompts["box_only"] == {"jittered_box", "tight_box"}
    assert prompts["mean_mask"] == {"whole_image"}
    assert prompts["zero_shot"] == {"whole_image", "predicted_box", "jittered_box", "tight_box"}
    assert controls["mean_mask"].n_total_labels == N_TRAIN
    assert controls["zero_shot"].n_total_labels == 0


def test_another_prompt_or_cohort_fits_nothing_again():
    base = plan()
    more = plan("evaluation.prompts=[whole_image,jittered_box,predicted_box]")
    moved = [node.stage for key, node in more.nodes.items() if key not in base.nodes]
    assert set(moved) == {"score"}
    assert set(base.nodes) < set(more.nodes)
    data = make_data()
    extra = {f"es{k}": f"hash-es{k}" for k in range(3)}
    wider = make_data(
        content={**data.content, **extra},
        references={**data.references, **extra},
        cohorts={"es": list(extra)},
    )
    other = plan(data=wider)
    moved = [node.stage for key, node in other.nodes.items() if key not in base.nodes]
    assert set(moved) == {"embed", "score", "control"}
    assert set(base.nodes) < set(other.nodes)


def test_every_condition_has_its_inputs_and_its_labels():
    made = plan(
        "sweep.condition=[real,real_repeated,weak,strong,warp,phantom,synthetic,"
        "synthetic_same_budget,synthetic_same_budget_strong,real_resized,synthetic_no_gate,"
        "synthetic_random_subset,warp_strong]",
        "conditions.warp_strong={pairs: warp, augment: strong}",
        "sweep.real_fraction=[0.1]",
        "synthesis.generator_count=20",
    )
    found = {}
    for spec in made.trials:
        if not spec.is_control:
            node = made.nodes[spec.fit_key]
            pairs = node.upstream.get("pairs", "").split("/")[0]
            found[spec.condition] = (pairs, "views" in node.upstream, spec.n_total_labels)
    assert found == {
        "real": ("", False, 5),
        "real_repeated": ("", False, 5),
        "weak": ("", True, 5),
        "strong": ("", True, 5),
        "warp": ("warp", False, 5),
        "phantom": ("phantom", False, 5),
        "synthetic": ("gate", False, 20),
        "synthetic_same_budget": ("gate", False, 5),
        "synthetic_same_budget_strong": ("gate", True, 5),
        "real_resized": ("resize", False, 20),
        "synthetic_no_gate": ("synthesize", False, 20),
        "synthetic_random_subset": ("subset", False, 20),
        "warp_strong": ("warp", True, 5),
    }
    fits = [spec.fit_key for spec in made.trials if not spec.is_control]
    assert len(set(fits)) == len(fits)


def test_without_a_number_of_views_every_draw_is_augmented_and_encoded_anew():
    made = plan(
        "sweep.condition=[real,strong,synthetic_same_budget_strong]",
        "sweep.real_fraction=[0.1]",
        "synthesis.generator_count=20",
        "augment.n_views=null",
    )
    fits = {spec.condition: made.nodes[spec.fit_key] for spec in made.trials if not spec.is_control}
    assert set(fits["real"].upstream) == {"embeddings"}
    assert "augment" not in fits["real"].content
    assert set(fits["strong"].upstream) == set()
    assert set(fits["synthetic_same_budget_strong"].upstream) == {"pairs"}
    for condition in ("strong", "synthetic_same_budget_strong"):
        assert fits[condition].content["augment"]["strength"] == "strong"
        # Its encoder makes the result, so it makes the id.
        assert fits[condition].content["encoder"]["precision"] == "fp32"
    views = [n.content.get("augment", {}) for n in made.nodes.values() if n.stage == "embed"]
    assert {view.get("strength") for view in views} <= {None, "mirror"}


def test_with_many_images_each_has_fewer_views():
    made = plan(
        "sweep.condition=[strong]",
        "sweep.real_fraction=[]",
        "sweep.real_count=[5,20,40]",
        "augment.max_per_trial=60",
    )
    found = {}
    for spec in made.trials:
        if not spec.is_control:
            views = made.nodes[made.nodes[spec.fit_key].upstream["views"]].content
            found[spec.n_real] = views["augment"]["n_views"]
    # 60 // 5 is more than eight, 60 // 40 less than two.
    assert found == {5: 8, 20: 3, 40: 2}


def test_a_fold_tests_its_own_images_and_shares_nothing_that_it_fitted():
    data = make_data()
    ids = list(data.units)
    folds = tuple(
        Split(train=tuple(rest[6:]), val=tuple(rest[:6]), test=tuple(test))
        for test in (ids[::2], ids[1::2])
        for rest in [[i for i in ids if i not in set(test)]]
    )
    made = plan(
        "split.n_folds=2",
        "sweep.fold=[0,1]",
        "sweep.condition=[real]",
        "sweep.real_fraction=[0.5]",
        data=make_data(folds=folds),
    )
    first, second = (spec for spec in made.trials if not spec.is_control)
    assert (first.fold, second.fold) == (0, 1)
    assert first.fit_key != second.fit_key
    assert second.name.endswith("-f1")
    tested = [
        {i for i, _ in made.nodes[spec.score_keys["hc18", "whole_image"]].content["test"]}
        for spec in (first, second)
    ]
    assert tested == [set(ids[::2]), set(ids[1::2])]
    for spec, fold in ((first, folds[0]), (second, folds[1])):
        trained = {i for i, _ in made.nodes[spec.fit_key].content["images"]}
        assert trained <= set(fold.train)
        assert not trained & set(fold.test)


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
        if spec.is_control:
            continue
        assert spec.n_generator_labels == spec.n_real == spec.n_total_labels


def test_rows_count_distinct_labels():
    made = plan("sweep.real_fraction=[0.1]", "synthesis.generator_count=20")
    real, synthetic = made.trials[:2]
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


def test_the_judge_of_the_gate_reads_no_validation_label():
    axes = ("sweep.condition=[synthetic_same_budget]", "sweep.segmenter=[unet]")
    made = plan(*axes, "segmenter.early_stopping_patience=3")
    assert {spec.n_val_labels for spec in made.grid} == {0}
    assert [n.content["val"] for n in made.nodes.values() if n.stage == "fit"] == [[]] * 6
    with pytest.raises(InputError, match=r"gate\.judge: early_stopping_patience reads validation"):
        plan(*axes, "gate.judge={kind: unet, early_stopping_patience: 3}")


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


def test_labels_and_wandb_ids_name_what_was_fitted():
    # It imports W&B and Lightning, for seconds.
    from experiments.stages.stage_logger import run_id

    words = ["sweep.segmenter=[sam,unet]", "sweep.condition=[real]"]
    words += ["sweep.real_fraction=[0.1]", "sweep.seed=[3]"]
    made = plan(*words, "evaluation.prompts=[whole_image]", "evaluation.controls=[zero_shot]")
    box, box_key = box_plan(load_config(TOY, words), make_data())
    found = {}
    for node in [*made.nodes.values(), box.nodes[box_key]]:
        store = SimpleNamespace(root=Path("/nowhere"))
        wandb_id = run_id(
            SimpleNamespace(node=node, config=SimpleNamespace(name="night"), store=store)
        )
        found[node.label] = wandb_id.replace(node.id[:8], "ID")
    assert found == {
        "embed 5 train images": "night-embed-n5-ID-s0",
        "embed 22 test images of hc18": "night-embed-n22-ID-s0",
        "fit real, 5 images, seed 3": "night-real-n5-ID-s3",
        "fit unet real, 5 images, seed 3": "night-unet-real-n5-ID-s3",
        "score real, 5 images, seed 3 on hc18, whole_image": "night-score-n0-ID-s0",
        "score unet real, 5 images, seed 3 on hc18, whole_image": "night-score-n0-ID-s0",
        "score zero-shot on hc18, whole_image": "night-score-n0-ID-s0",
        "increasing box jitter: real, 5 images, seed 3": "night-box-n5-ID-s0",
    }


def test_the_box_figures_model_may_be_a_single_arm_beside_a_cross_that_takes_no_box():
    words = ["sweep.segmenter=[unet]", "sweep.condition=[strong]", "sweep.real_fraction=[0.1]"]
    words.append("sweep.also=[{segmenter: sam, condition: real}]")
    made, key = box_plan(load_config(TOY, words), make_data())
    assert [trial.arm for trial in made.trials] == ["real"]
    assert made.nodes[key].upstream["fit"] == made.trials[0].fit_key


@pytest.mark.parametrize(
    ("override", "changed"),
    [
        ("segmenter.steps=41", {"fit", "gate", "score", "fidelity"}),
        ("segmenter.learning_rate=0.01", {"fit", "gate", "score", "fidelity"}),
        ("segmenter.encoder_precision=bf16", {"embed", "fit", "gate", "score", "fidelity"}),
        (
            "generator.steps=123",
            {"generator", "synthesize", "embed", "gate", "fit", "score", "fidelity"},
        ),
        (
            "synthesis.sampler.num_inference_steps=7",
            {"synthesize", "embed", "gate", "fit", "score", "fidelity"},
        ),
        ("synthesis.sampler.batch_size=3", set()),
        ("gate.min_agreement=0.1", {"gate", "fit", "score", "fidelity"}),
        ("evaluation.jitter_draws=9", {"score", "control"}),
        ("sweep.seed=[5]", {"fit", "score"}),
        (
            "segmenter.backbone=tiny",
            {"embed", "fit", "gate", "score", "control", "fidelity"},
        ),
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
    assert moved == {"embed", "score", "control", "fidelity"}


def test_a_corrected_pixel_size_is_scored_again_and_nothing_is_embedded_again():
    data = make_data()
    touched = data.split.test[0]
    changed = make_data(references={**data.references, touched: "other"})
    base, other = plan(data=data), plan(data=changed)
    moved = {node.stage for key, node in other.nodes.items() if key not in base.nodes}
    assert moved == {"score", "control"}


def test_the_seed_of_the_generator_is_no_axis_of_real_trials():
    made = plan("sweep.generator_seed=[0,1]", "sweep.real_fraction=[0.5]")
    conditions = [spec.condition for spec in made.trials if not spec.is_control]
    assert conditions == ["real", "synthetic", "synthetic"]
    other = plan("sweep.generator_seed=[3]", "sweep.real_fraction=[0.5]")
    assert [spec.generator_seed for spec in other.grid] == [0, 3]


def test_the_seed_of_the_generator_is_no_axis_of_pairs_that_none_made():
    axes = ["sweep.generator_seed=[0,1]", "sweep.real_count=[8]", "sweep.real_fraction=[]"]
    made = plan(*axes, "sweep.condition=[real_resized,synthetic,synthetic_random_subset]")
    seeds = [(t.condition, t.generator_seed) for t in made.grid]
    assert seeds == [
        ("real_resized", 0),
        ("synthetic", 0),
        ("synthetic", 1),
        ("synthetic_random_subset", 0),
        ("synthetic_random_subset", 1),
    ]
    foreign = plan(*axes, "sweep.condition=[synthetic]", data=make_data(foreign_pairs={"a": "b"}))
    assert len(foreign.grid) == 1


def test_a_folder_of_pairs_spares_no_other_condition_its_number_of_labels(tmp_path):
    words = ["synthesis.generator_count=47", f"synthesis.folder={tmp_path}"]
    data = make_data(foreign_pairs={"a": "1", "b": "2"})
    assert plan("sweep.condition=[synthetic]", *words, data=data).grid
    for name in ("real_resized", "synthetic_no_gate"):
        with pytest.raises(InputError, match=r"synthesis\.generator_count=47.*46"):
            plan(f"sweep.condition=[synthetic,{name}]", *words, data=data)


def test_foreign_pairs_need_no_generator_and_no_gate():
    made = plan("sweep.condition=[synthetic]", data=make_data(foreign_pairs={"a": "1", "b": "2"}))
    assert stages(made) == {
        "import_pairs": 1,
        "embed": 5,
        "fit": 3,
        "score": 8,
        "control": 2,
    }
    assert made.trials[0].n_generator_labels is None
    assert made.trials[0].n_total_labels is None
    assert {spec.generator for spec in made.grid} == {""}
    words = ("synthesis.folder_labels=60", "segmenter.early_stopping_patience=3")
    known = plan("sweep.condition=[synthetic]", *words, data=make_data(foreign_pairs={"a": "1"}))
    assert [(t.n_generator_labels, t.n_total_labels) for t in known.grid] == [
        (60, t.n_real + 60 + 10) for t in known.grid
    ]


def test_what_is_done_to_foreign_pairs_asks_for_no_generator():
    axes = ("sweep.segmenter=[unet]", "sweep.condition=[own]", "sweep.real_count=[5]")
    axes += ("sweep.real_fraction=[]", "synthesis.generator_count=5")
    data = make_data(foreign_pairs={"a": "1", "b": "2"})
    own = "conditions.own={{pairs: synthetic, labels: fixed, augment: strong, {}}}".format
    for more in ("extra: [zoom_out]", "without: [mirror]", "at_most: 1"):
        assert "generator" not in stages(plan(*axes, own(more), data=data))
    with pytest.raises(InputError, match="condition own: order=hardest needs what a gate measured"):
        plan(*axes, own("at_most: 1, order: hardest"), data=data)


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
