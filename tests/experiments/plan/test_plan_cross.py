"""Every segmenter with every condition and every kind of generator, as a plan."""

from dataclasses import replace

import pytest
from plan_parts import N_TRAIN, make_data, plan
from sd_parts import tiny_pipeline
from toy_recipe import TOY

from datamodules.errors import InputError
from datamodules.splits import Split
from datamodules.storage import content_key
from experiments.config.conditions import CONDITIONS
from experiments.config.recipe import load_config
from experiments.plan.grid import box_plan
from experiments.plan.record import planned
from lightning_modules.generators.table import GENERATORS
from lightning_modules.segmenters.table import SEGMENTERS
from lightning_modules.segmenters.unet.pretrained import SHA256


def test_every_combination_is_a_trial_and_all_segmenters_see_the_same_pairs(tmp_path):
    made = plan(
        f"sweep.segmenter=[{','.join(SEGMENTERS)}]",
        f"sweep.condition=[{','.join(CONDITIONS)}]",
        f"sweep.generator=[{','.join(GENERATORS)}]",
        f"stable_diffusion.base_model={tiny_pipeline(tmp_path / 'base')}",
        "sweep.real_fraction=[0.1]",
        "synthesis.generator_count=20",
    )
    found = {(spec.segmenter, spec.condition, spec.generator): spec for spec in made.grid}
    assert set(found) == {
        (segmenter, condition, generator)
        for segmenter in SEGMENTERS
        for condition, row in CONDITIONS.items()
        for generator in (GENERATORS if row.factors.source.has_generator else [""])
    }
    assert len({spec.fit_key for spec in found.values()}) == len(found) == len(made.grid)
    assert len({spec.id for spec in found.values()}) == len(found)
    # Labels of a teacher are those of the trial's own segmenter.
    shared = [name for name, row in CONDITIONS.items() if not row.factors.uses_unlabelled]
    for condition in shared:
        for generator in ("", *GENERATORS):
            pairs = {
                made.nodes[spec.fit_key].upstream.get("pairs")
                for (_, name, by), spec in found.items()
                if (name, by) == (condition, generator)
            }
            assert len(pairs) <= 1, (condition, generator)


def test_ids_are_those_of_finished_runs():
    """What is hashed of each stage. Where it changes, all runs of the stage, and of those behind
    it, are made anew: mean it, and say so by a new version of the stage."""
    axes = ("sweep.real_fraction=[0.2]", "sweep.support=[1]", "sweep.seed=[2]", "sweep.fold=[1]")
    axes += ("sweep.generator_seed=[3]", "synthesis.generator_count=9", "split.n_folds=2")
    conditions = "real_repeated,warp,phantom,real_resized,synthetic_random_subset,few"
    conditions += ",self_training_2,synthetic_unlabelled"
    few = "conditions.few={pairs: synthetic, augment: strong, at_most: 7, order: hardest}"
    base = ("stable_diffusion.base_model=a/b", f"stable_diffusion.revision={'a' * 40}")
    kinds = ("sweep.segmenter=[unet]", "sweep.generator=[pixel,stable_diffusion]", *base)
    square = ("segmenter.geometry=squash", "segmenter.early_stopping_patience=3")
    square += ("segmenter.backbone=vit_tiny", "segmenter.tuning=late_lora")
    square += ("sweep.condition=[strong,warp]",)
    own = frozen_data()
    nodes = dict(box_plan(load_config(TOY, [*axes, *square]), own)[0].nodes)
    for data, words in (
        (own, (*kinds, f"sweep.condition=[{conditions}]", few)),
        (own, square),
        (own, (*square, "augment.n_views=null")),
        (replace(own, foreign_pairs={"p": "1", "o": "2"}), ("sweep.condition=[synthetic]",)),
    ):
        nodes |= plan(*axes, *words, data=data).nodes
    ids = {}
    for node in nodes.values():
        ids.setdefault(node.stage, []).append(node.id)
    assert {stage: content_key(sorted(found)) for stage, found in ids.items()} == FROZEN


FROZEN = {
    "box": "b91c25202e64b290",
    "control": "20a537f79045e2ff",
    "embed": "811cc0eba36a1f03",
    "fidelity": "a5528bdbbe6fe3b5",
    "fit": "162b07679e747448",
    "gate": "60db2db390258652",
    "generator": "9f388bad46af69b2",
    "import_pairs": "3093cbb9b77a2f4f",
    "phantom": "f1f2d589806b63b8",
    "pseudo": "a35e0798048db7db",
    "resize": "3441610c43dd798d",
    "score": "6ede1ae175f05436",
    "subset": "220ef594af474e18",
    "synthesize": "81c1e32d2a3eb955",
    "warp": "06f6bcc774890a38",
}


def frozen_data():
    """Two folds, an external cohort, an image without an annotation, and pixel sizes."""
    data = with_sizes(make_data())
    ids, more = list(data.units), {"es-0": "es", "free": "free"}
    folds = tuple(
        Split(
            train=tuple(name for name in ids[16:] if name not in test),
            val=tuple(ids[8 * fold : 8 * fold + 8]),
            test=tuple(test),
        )
        for fold, test in enumerate((ids[16:40], ids[40:64]))
    )
    known = {"content": data.content | more, "references": data.references | more}
    return replace(data, folds=folds, cohorts={"es": ["es-0"]}, unlabelled=("free",), **known)


def with_sizes(data, *, test_scale=1.0):
    """The data with pixel sizes; those of the images that are not in train times `test_scale`."""
    train = set(data.split.train)
    units = {
        key: replace(unit, pixel_size_mm=(0.1 + 0.01 * k) * (1 if key in train else test_scale))
        for k, (key, unit) in enumerate(data.units.items())
    }
    return replace(data, units=units)


def test_sentences_on_trimesters_are_in_the_id_of_a_generator_that_reads_them(tmp_path):
    base = f"stable_diffusion.base_model={tiny_pipeline(tmp_path / 'base')}"
    axes = ("sweep.condition=[synthetic_same_budget]", "sweep.generator=[pixel,stable_diffusion]")
    axes += ("sweep.real_fraction=[0.1]", "sweep.choice=[by_pixel_size]", base)
    known, found = with_sizes(make_data()), []
    # A CSV that tells no circumference: the same images, chosen alike.
    units = {name: replace(unit, stratum=0) for name, unit in known.units.items()}
    for data in (known, replace(known, units=units)):
        nodes = plan(*axes, data=data).nodes.values()
        found.append({node.generator: node.id for node in nodes if node.stage == "generator"})
    assert found[0]["pixel"] == found[1]["pixel"]
    assert found[0]["stable_diffusion"] != found[1]["stable_diffusion"]


def test_a_choice_crosses_with_everything_and_names_random_trials_as_before():
    axes = (
        "sweep.segmenter=[sam,unet]",
        "sweep.condition=[real,synthetic,synthetic_same_budget]",
        "sweep.real_fraction=[0.2]",
        "sweep.support=[0,1]",
        "synthesis.generator_count=20",
    )
    data = with_sizes(make_data())
    before, made = plan(*axes, data=data), plan(
        *axes, "sweep.choice=[random,by_pixel_size]", data=data
    )  # fmt: skip
    assert len(made.grid) == 2 * len(before.grid)
    drawn = [spec for spec in made.grid if spec.choice == "random"]
    assert [(spec.id, spec.tags) for spec in drawn] == [(s.id, s.tags) for s in before.grid]
    chosen = [spec for spec in made.grid if spec.choice == "by_pixel_size"]
    assert len({spec.name for spec in made.grid}) == len(made.grid)
    assert chosen[0].name == "real-by_pixel_size-n9-p0-s0-g0"
    assert all(spec.choice not in spec.tags for spec in drawn)
    assert all(spec.choice in spec.tags and spec.axes["choice"] for spec in chosen)
    # The generator of a fixed number of labels has one set of images, whatever is chosen.
    pairs = {made.nodes[s.fit_key].upstream["pairs"] for s in made.grid if s.pair_labels == "fixed"}
    assert len(pairs) == 1
    assert {spec.axes["choice"] for spec in made.trials if spec.is_control} == {""}
    kept = planned(made).trials
    assert [trial.choice for trial in kept] == [spec.choice for spec in made.trials]


def test_pixel_sizes_of_test_images_choose_nothing():
    axes = ("sweep.condition=[real]", "sweep.choice=[by_pixel_size]", "sweep.support=[0,1]")
    first, second = (
        plan(*axes, data=with_sizes(make_data(), test_scale=scale)) for scale in (1.0, 9.0)
    )
    assert [spec.id for spec in first.grid] == [spec.id for spec in second.grid]


def test_a_train_image_without_a_pixel_size_is_refused_before_anything_runs():
    with pytest.raises(InputError, match=r"sweep\.choice=by_pixel_size: \S+ has no pixel size"):
        plan("sweep.choice=[random,by_pixel_size]")


@pytest.mark.parametrize(("factor", "name"), [("without", "zoom"), ("extra", "zoom_out")])
def test_an_ablation_of_the_augmentation_is_another_fit_of_segmenters_that_augment_as_drawn(
    factor, name
):
    still = f"conditions.still={{augment: strong, {factor}: [{name}]}}"
    own = ("sweep.condition=[strong,still]", still)
    amount = ("sweep.real_fraction=[0.1]",)
    made = plan("sweep.segmenter=[unet]", *own, *amount)
    strong, still = (made.nodes[spec.fit_key].content for spec in made.grid)
    assert factor not in strong["augment"]
    assert still == strong | {"augment": strong["augment"] | {factor: [name]}}
    with pytest.raises(InputError, match=rf"condition still: {factor}=.*augment\.n_views=null"):
        plan("sweep.segmenter=[sam]", *own, *amount)
    with pytest.raises(InputError, match=rf"{factor}=zom: unknown; .*zoom"):
        plan(*own[:1], f"conditions.still={{augment: strong, {factor}: [zom]}}", *amount)
    with pytest.raises(InputError, match=r"augment=none has no parts"):
        plan(*own[:1], f"conditions.still={{{factor}: [{name}]}}", *amount)


def test_fewer_of_the_same_pairs_are_another_fit_on_the_same_set():
    few = "conditions.few={pairs: warp, augment: strong, at_most: 7}"
    all_of_them = "conditions.all={pairs: warp, augment: strong}"
    axes = ("sweep.segmenter=[unet]", "sweep.real_fraction=[0.1]", "sweep.condition=[few,all]")
    made = plan(*axes, few, all_of_them)
    first, second = (made.nodes[spec.fit_key] for spec in made.grid)
    assert first.upstream == second.upstream
    assert first.content == second.content | {"at_most": 7}


def test_extra_augmentation_is_that_of_every_strong_fit_and_of_a_condition_that_names_it():
    axes = ("sweep.condition=[real,weak,strong,self_training,small]", "sweep.real_count=[5]")
    axes += ("sweep.segmenter=[unet]", "sweep.real_fraction=[]")
    small = "conditions.small={augment: strong, extra: [small_head]}"
    plain, extra = (plan(*axes, small, *more) for more in ((), ("augment.extra=[small_head]",)))
    fits = [
        [made.nodes[key].content.get("augment", {}) for key in made.nodes if key.startswith("fit/")]
        for made in (plain, extra)
    ]
    strong = [each for each in fits[1] if each.get("strength") == "strong"]
    assert len(strong) == 2  # The condition's and the teacher's are one, the student's is another.
    assert all(each["extra"] == ["small_head"] for each in strong)
    assert sum("extra" in each for each in fits[0]) == 1
    named = [spec.fit_key for spec in plain.grid if spec.condition == "small"]
    everywhere = [spec.fit_key for spec in extra.grid if spec.condition == "strong"]
    assert named == everywhere
    with pytest.raises(InputError, match=r"extra=\['small_head'\] needs views that are made"):
        plan("sweep.segmenter=[sam]", "augment.extra=[small_head]", *axes[:1], small)
    judged = ("gate.judge_augment=strong", "sweep.segmenter=[unet]", "augment.extra=[small_head]")
    with pytest.raises(InputError, match=r"gate\.judge_augment: extra=.*or gate\.judge\.kind=unet"):
        plan("sweep.condition=[synthetic]", *judged)
    with pytest.raises(InputError, match=r"augment\.extra.*small_heads.*small_head"):
        plan(*axes, small, "augment.extra=[small_heads]")


def test_a_moderate_end_is_another_fit_of_strong_augmentation_alone_and_not_of_embedded_views():
    own = ("sweep.condition=[weak,strong]", "sweep.real_fraction=[0.1]")
    end = "augment.moderate_end=0.3"
    unet = "sweep.segmenter=[unet]"
    before, after = (plan(unet, *own, *more) for more in ((), (end,)))
    weak, strong = before.grid
    assert weak.fit_key == after.grid[0].fit_key
    content = after.nodes[after.grid[1].fit_key].content
    assert content["augment"].pop("moderate_end") == 0.3
    assert content == before.nodes[strong.fit_key].content
    with pytest.raises(InputError, match=r"moderate_end=0\.3 needs views.*augment\.n_views=null"):
        plan("sweep.segmenter=[sam]", *own, end)
    with pytest.raises(InputError, match=r"augment\.moderate_end=1\.5"):
        plan(unet, *own, "augment.moderate_end=1.5")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ((), SHA256),
        (("unet.encoder_weights=null",), None),
        # Downloaded: the name is all that is known of them.
        (("unet.encoder_name=resnet18",), None),
    ],
)
def test_a_unets_fit_names_the_content_of_the_weights_that_it_starts_from(changes, expected):
    made = plan("sweep.segmenter=[unet]", "sweep.condition=[real]", *changes)
    fits = [node for node in made.nodes.values() if node.stage == "fit"]
    assert fits
    assert {node.content.get("weights_sha256") for node in fits} == {expected}


def test_the_box_figures_model_is_the_first_strong_one_with_the_most_images():
    words = ["sweep.condition=[real,strong]", "sweep.support=[2,1]", "sweep.seed=[4,3]"]
    made, _ = box_plan(load_config(TOY, words), make_data())
    (trial,) = made.trials
    assert (trial.condition, trial.n_real) == ("strong", N_TRAIN)
    assert (trial.support, trial.seed) == (1, 3)


def test_amounts_and_the_mean_mask_are_of_each_folds_own_train_part():
    (split,) = make_data().folds
    smaller = Split(train=split.train[:20], val=split.val, test=split.test)
    made = plan(
        "split.n_folds=2",
        "sweep.fold=[0,1]",
        "sweep.condition=[real]",
        "sweep.real_fraction=[0.5]",
        "evaluation.controls=[mean_mask]",
        data=make_data(folds=(split, smaller)),
    )
    assert [spec.n_real for spec in made.grid] == [23, 10]
    controls = [spec for spec in made.trials if spec.is_control]
    assert [(spec.fold, spec.n_total_labels) for spec in controls] == [(0, 46), (1, 20)]


def test_blocks_of_one_encoder_are_one_control_named_by_the_first():
    other = "segmenters.other={kind: sam, backbone: lite, steps: 9}"
    made = plan(other, "sweep.segmenter=[sam,other]", "evaluation.controls=[zero_shot]")
    assert [spec.segmenter for spec in made.trials if spec.is_control] == ["sam"]
