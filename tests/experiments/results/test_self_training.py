"""What the report says of self-training: a row per teacher, rounds and supports told apart."""

from experiments.plan.nodes import Node, Plan, TrialSpec
from experiments.results.self_training import TRUE_DICE, kept_labels, kept_sentence
from experiments.runner.sweep import NodeRun, Sweep
from experiments.store.runs import RunStore, write_done

KEPT = {
    "n_unlabelled": 50,
    "n_kept": 30,
    "mean_agreement": 0.9412,
    "true_dice": 0.9681,
    "kept_by_trimester": {"1": 2, "2": 20, "3": 8},
    "images_by_trimester": {"1": 10, "2": 30, "3": 10},
}


class Taught(Sweep):
    """A sweep as far as the table reads it."""

    def __init__(self, root):
        self.store, self.runs = RunStore(root), {}
        self.plan = Plan(nodes={}, trials=[])

    def add(self, stage, *, of, result=None, title="", state="done", **upstream):
        node = Node(stage=stage, content={"of": of}, upstream=upstream, title=title)
        self.plan.nodes[node.key] = node
        self.runs[node.key] = NodeRun(node=node, state=state)
        if result is not None:
            folder = self.store.run_dir(stage, node.id)
            folder.mkdir(parents=True)
            write_done(folder, result)
        return node.key

    def trial(self, fit_key, *, support, fold=0):
        counts = {"real_fraction": None, "n_real": 20, "n_total_labels": 20, "support": support}
        counts |= dict.fromkeys(("n_generator_labels", "n_val_labels"), 0)
        counts |= dict.fromkeys(("seed", "generator_seed"), 0) | {"fold": fold}
        self.plan.trials.append(
            TrialSpec(**counts, condition="self_training", fit_key=fit_key, score_keys={})
        )


def test_each_set_of_labels_has_its_teacher_round_and_support(tmp_path):
    sweep = Taught(tmp_path)
    worse = KEPT | {"n_kept": 25, "true_dice": None}
    for support, first in ((0, KEPT), (3, worse)):
        teacher = sweep.add("fit", of=support, title=f"strong of {support}")
        one = sweep.add("pseudo", of=support, result=first, teacher=teacher)
        student = sweep.add("fit", of=support, title=f"self_training of {support}", pairs=one)
        state = "failed" if support == 3 else "done"
        two = sweep.add("pseudo", of=support, result=KEPT, teacher=student, state=state)
        sweep.trial(sweep.add("fit", of=support, title="last", pairs=two), support=support)
    found = kept_labels(sweep)
    assert found["teacher"].tolist() == ["strong of 0", "self_training of 0", "strong of 3"]
    assert found["round"].tolist() == ["1", "2", "1"]
    assert found["support"].tolist() == ["0", "0", "3"]
    assert found["unlabelled"].tolist() == ["50"] * 3
    assert found["kept"].tolist() == ["30 (60 %)", "30 (60 %)", "25 (50 %)"]
    assert found["kept of trimester 1"][0] == "2 of 10"
    assert found["kept of trimester 3"][0] == "8 of 10"
    assert found["mean agreement"][0] == "0.941"
    assert found[TRUE_DICE].tolist() == ["0.968", "0.968", "–"]
    assert kept_sentence(worse).endswith("no annotation to compare with")


def test_supports_of_several_folds_are_told_apart(tmp_path):
    sweep = Taught(tmp_path)
    teacher = sweep.add("fit", of=0, title="strong")
    labels = sweep.add("pseudo", of=0, result=KEPT, teacher=teacher)
    student = sweep.add("fit", of=1, title="last", pairs=labels)
    for fold in (0, 2, 2):
        sweep.trial(student, support=1, fold=fold)
    assert kept_labels(sweep)["support"].tolist() == ["1, 1 fold 2"]


def test_a_sweep_without_self_training_has_no_row(tmp_path):
    sweep = Taught(tmp_path)
    sweep.trial(sweep.add("fit", of=0, title="strong"), support=0)
    assert kept_labels(sweep).empty
