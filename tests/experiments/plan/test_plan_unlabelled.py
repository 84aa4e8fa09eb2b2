"""Unlabelled images in a plan: whose labels they get, what is shared, what is counted."""

from dataclasses import replace

import pytest
from plan_parts import N_TRAIN, make_data, plan

from datamodules.errors import InputError
from experiments.config.conditions import CONDITIONS
from experiments.config.schema import JUDGE

UNLABELLED = [name for name, row in CONDITIONS.items() if row.factors.uses_unlabelled]
SMALL = ("sweep.real_fraction=[]", "sweep.real_count=[5]", "evaluation.prompts=[whole_image]")


def planned(*overrides, conditions=("strong", *UNLABELLED)):
    made = plan(*SMALL, f"sweep.condition=[{','.join(conditions)}]", *overrides)
    return made, {spec.condition: spec for spec in made.grid}


def teacher_of(made, key):
    return made.nodes[made.nodes[key].upstream["teacher"]]


def test_the_teacher_is_the_trial_strong_and_then_the_trial_of_the_round_before():
    made, found = planned()
    fits = {name: made.nodes[spec.fit_key] for name, spec in found.items()}
    first, second = (fits[name].upstream["pairs"] for name in ("self_training", "self_training_2"))
    assert made.nodes[first].upstream == {"teacher": found["strong"].fit_key}
    assert made.nodes[second].upstream == {"teacher": found["self_training"].fit_key}
    # Alone in a sweep a condition has the same teachers, whatever they are called.
    alone, (spec,) = planned(conditions=["self_training_2"])[0], planned()[0].grid[2:3]
    assert alone.grid[0].fit_key == spec.fit_key
    assert found["strong"].fit_key in alone.nodes


def test_unlabelled_images_are_those_of_the_train_part_beyond_the_trials_own():
    made, found = planned()
    content = made.nodes[made.nodes[found["self_training"].fit_key].upstream["pairs"]].content
    unlabelled = {sample_id for sample_id, _ in content["images"]}
    own = {i for i, _ in made.nodes[found["self_training"].fit_key].content["images"]}
    assert unlabelled | own == set(make_data().split.train)
    assert not unlabelled & own
    assert content["self_training"] == {"min_agreement": 0.96, "view_zoom": 0.8}
    assert {spec.n_unlabelled for spec in made.grid if spec.condition != "strong"} == {N_TRAIN - 5}
    assert found["strong"].n_unlabelled == found["strong"].axes["n_unlabelled"] == 0
    # They cost no label.
    assert {spec.n_total_labels for spec in made.grid} == {5}


def test_a_generator_of_unlabelled_images_and_its_gate_read_the_labels_of_the_teacher():
    made, found = planned()
    one, two, both = (
        made.nodes[found[f"synthetic_unlabelled{end}"].fit_key].upstream
        for end in ("", "_2", "_self_training")
    )
    assert both["more_pairs"] == one["pairs"] != two["pairs"]
    for upstream, trial in ((one, "self_training"), (two, "self_training_2")):
        pseudo = made.nodes[found[trial].fit_key].upstream["pairs"]
        gate = made.nodes[upstream["pairs"]]
        candidates = made.nodes[gate.upstream["candidates"]]
        generator = made.nodes[candidates.upstream["generator"]]
        for node in (gate, candidates, generator):
            assert node.upstream["pseudo"] == pseudo
        # What a label is needed for is counted as before.
        assert len(generator.content["images"]) == len(gate.content["images"]) == 5


def test_labels_of_stages_tell_rounds_apart():
    made, _ = planned()
    labels = [node.label for node in made.nodes.values()]
    assert len(set(labels)) == len(labels)


def test_stages_of_other_conditions_hash_nothing_of_unlabelled_images():
    """So that their ids are those of runs from before there were any."""
    made = plan("sweep.condition=[synthetic_same_budget,warp]", "sweep.real_fraction=[0.1]")
    found = {node.stage: node for node in made.nodes.values()}
    assert found["generator"].upstream == found["warp"].upstream == {}
    assert set(found["synthesize"].upstream) == {"generator"}
    assert "pseudo" not in found["gate"].upstream
    assert "balance_sizes" not in found["synthesize"].content["synthesis"]
    assert set(found["warp"].content) == {"images", "n", "seed", "image_hw"}
    assert not any("more_pairs" in node.upstream for node in made.nodes.values())
    balanced = plan(
        "sweep.condition=[synthetic_same_budget]",
        "sweep.real_fraction=[0.1]",
        "synthesis.balance_sizes=true",
    )
    moved = {node.stage for key, node in balanced.nodes.items() if key not in made.nodes}
    assert {"synthesize", "gate"} <= moved
    assert "generator" not in moved


def test_each_segmenter_and_seed_is_its_own_teacher():
    made, _ = planned(
        "sweep.segmenter=[unet,sam]", "sweep.seed=[0,1]", conditions=["self_training"]
    )
    teachers = {
        (spec.segmenter, spec.seed): teacher_of(made, made.nodes[spec.fit_key].upstream["pairs"])
        for spec in made.grid
    }
    assert len({node.key for node in teachers.values()}) == 4
    for (segmenter, seed), node in teachers.items():
        assert (node.segmenter, node.content["seed"]) == (segmenter, seed)


def test_an_amount_without_unlabelled_images_is_left_out_of_their_conditions_alone():
    off = "statistics.primary.enabled=false"
    made = plan("sweep.condition=[strong,self_training]", "sweep.real_fraction=[0.1,1.0]", off)
    assert [(spec.condition, spec.n_real) for spec in made.grid] == [
        ("strong", 5),
        ("strong", N_TRAIN),
        ("self_training", 5),
    ]
    assert made.notes == [
        f"note: self_training not at {N_TRAIN} labelled images, which leave none unlabelled"
    ]
    assert plan("sweep.condition=[strong]", off).notes == []
    with pytest.raises(InputError, match=r"sweep.real_count.*all 46.*self_training needs"):
        plan("sweep.condition=[strong,self_training]", "sweep.real_fraction=[1.0]")


@pytest.mark.parametrize(
    ("condition", "share", "n_notes"),
    [
        ("synthetic_unlabelled_self_training", 0.7, 0),
        # Of a batch of four two sets fill eight ninths.
        ("synthetic_unlabelled_self_training", 0.8, 1),
        # What stands for pairs are real images.
        ("real_repeated", 0.9, 0),
    ],
)
def test_a_batch_without_a_real_image_is_said_of_all_sets_together(condition, share, n_notes):
    words = (f"sweep.condition=[{condition}]", f"segmenter.synthetic_share={share}")
    found = plan(*words, "statistics.primary.enabled=false").notes
    assert sum("leaves no place for a real image" in note for note in found) == n_notes


def test_what_settings_lead_to_that_one_may_not_expect_is_said():
    (said,) = plan("sweep.condition=[real,strong]").notes
    assert "compares synthetic with real, and the sweep has no synthetic" in said
    assert plan("sweep.condition=[real,synthetic]").notes == []
    for word, lacks in (
        ("sweep.real_fraction=[0.2]", "no synthetic and no real at real_fraction=0.1"),
        ("sweep.support=[1,2]", None),
        ("statistics.primary.prompt=tight_box", "no synthetic and no real at prompt=tight_box"),
        ("statistics.primary.segmenter=unet", "no synthetic and no real at segmenter=unet"),
        ("statistics.primary.generator=stable_diffusion", "no synthetic at generator=stable_d"),
        ("statistics.primary.choice=coverage", "no synthetic and no real at choice=coverage"),
    ):
        found = plan("sweep.condition=[real,synthetic]", word).notes
        assert [lacks in note for note in found] == ([] if lacks is None else [True])
    # A share that is as many images is another amount.
    count = ("statistics.primary.real_count=5", "statistics.primary.real_fraction=null")
    (said,) = plan("sweep.condition=[real,synthetic]", *count).notes
    assert "no synthetic and no real at real_count=5" in said
    # Of a batch of four 0.8 are three, 0.9 all.
    assert plan("sweep.condition=[real,synthetic]", "segmenter.synthetic_share=0.8").notes == []
    (said,) = plan("sweep.condition=[real,synthetic]", "segmenter.synthetic_share=0.9").notes
    assert said.startswith("note: synthetic: synthetic_share=0.9 of a batch of 4 leaves no place")
    (said,) = plan("sweep.condition=[real,synthetic]", "segmenter.warmup_steps=32").notes
    assert "sam: the learning rate rises over warmup_steps=32, and the fit has 32 steps" in said


def test_what_predictions_alone_depend_on_names_no_fit_and_holds_under_strong_augmentation():
    axes = ("sweep.segmenter=[unet]", "gate.judge={kind: unet}", "gate.judge_augment=strong")
    conditions = ["real", "strong", "self_training", "synthetic_unlabelled"]
    (made, found), (other, others) = (
        planned(*axes, *settings, conditions=conditions)
        for settings in ((), ("unet.margin=0", "unet.closer_looks=0"))
    )
    for name in ("real", "strong"):
        assert found[name].fit_key == others[name].fit_key
    assert set(found["real"].score_keys.values()) == set(others["real"].score_keys.values())
    assert not set(found["strong"].score_keys.values()) & set(others["strong"].score_keys.values())
    asked = {node.stage for node in made.nodes.values() if "predicting" in node.content}
    assert asked == {"score", "pseudo", "gate", "fidelity"}
    assert not any("predicting" in node.content for node in other.nodes.values())


def test_blocks_that_differ_in_how_they_predict_share_fits_and_no_prediction():
    one_look = "segmenters.one_look={kind: unet, closer_looks: 0, margin: 0}"
    judge = ("gate.judge={kind: unet, closer_looks: 1}", "gate.judge_augment=strong")
    axes = ("sweep.segmenter=[unet,one_look]", one_look, *judge, "sweep.real_fraction=[0.1]")
    axes += ("sweep.condition=[strong,self_training,synthetic_same_budget_strong]",)
    axes += ("statistics.primary.enabled=false", "synthesis.fidelity=false")
    made, looks = plan(*axes), {"unet": 2, "one_look": 0, JUDGE: 1}
    predicting = [n for n in made.nodes.values() if n.stage in ("score", "pseudo", "gate")]
    assert {node.segmenter for node in predicting} == set(looks)
    for node in predicting:
        found = node.content.get("predicting", {}).get("closer_looks", 0)
        assert found == looks[node.segmenter], node.label
    specs = {(s.condition, s.segmenter): s for s in made.grid}
    for name in ("strong", "self_training"):
        both = [specs[name, segmenter] for segmenter in ("unet", "one_look")]
        assert (both[0].fit_key == both[1].fit_key) == (name == "strong")
        assert not set(both[0].score_keys.values()) & set(both[1].score_keys.values())
    alone = plan("sweep.segmenter=[one_look]", *axes[1:])
    assert {s.score_keys["hc18", "whole_image"] for s in alone.grid} <= set(made.nodes)


def test_images_without_annotations_are_unlabelled_at_every_amount():
    extra = ("unlabelled-000_HC",)
    data = make_data()
    data = replace(data, unlabelled=extra, content=data.content | dict.fromkeys(extra, "e"))
    made = plan("sweep.condition=[self_training]", "sweep.real_fraction=[1.0]", data=data)
    (spec,) = made.grid
    assert spec.n_unlabelled == 1
    pairs = made.nodes[made.nodes[spec.fit_key].upstream["pairs"]]
    assert pairs.content["images"] == [["unlabelled-000_HC", "e"]]
