"""From a recipe and an indexed data set to stages, trials and their ids. Nothing is run here.

A stage's id is a hash over what determines its result: the stage's version, its part of the
config, its inputs' content and the ids of the stages before it. Paths, devices, worker counts and
dashboards are not in it, so the same work is found again by any sweep on any machine.
"""

from collections import Counter
from dataclasses import dataclass
from itertools import product

from datamodules.errors import InputError
from datamodules.splits import amount_from_fraction, check_count
from experiments.config.schema import ExperimentConfig
from experiments.plan.fits import Nodes
from experiments.plan.nodes import DataView, Plan, TrialSpec
from experiments.plan.pairs import Source, pairs_of
from experiments.plan.scores import box, controls, scores
from lightning_modules.segmenters.table import row_of


@dataclass(frozen=True, kw_only=True)
class _Cell:
    """A place in the grid."""

    condition: str
    segmenter: str
    real_fraction: float | None
    n_real: int
    choice: str
    support: int
    seed: int
    fold: int


def make_plan(config: ExperimentConfig, data: DataView) -> Plan:
    """Lay out the grid; InputError for an amount that the train part cannot give."""
    trials: list[TrialSpec] = []
    nodes = Nodes(config, data)
    for fold in config.sweep.fold:
        _check_generator_count(config, n_train=len(data.folds[fold].train))
        trials += _grid(nodes, fold=fold)
    for fold in config.sweep.fold:
        trials += _controls(nodes, fold=fold)
    notes = _left_out(config, data)
    return Plan(nodes=nodes.nodes, trials=trials, notes=notes)


def box_plan(config: ExperimentConfig, data: DataView) -> tuple[Plan, str]:
    """The plan with the stage behind the box figure, and that stage's key.

    Its model takes a prompt, and is that of the first choice, support and seed, with the most real
    images, of the condition `strong` where the recipe has it and else of its first one.

    Raises:
        InputError: If no segmenter of the recipe takes a prompt.
    """
    nodes = Nodes(config, data)
    fold = config.sweep.fold[0]
    trials = [t for t in _grid(nodes, fold=fold) if config.takes_prompt(t.segmenter)]
    if not trials:
        raise InputError("sweep.segmenter: the box figure needs one that takes a box; add sam")
    preferred = "strong" if "strong" in config.sweep.condition else trials[0].condition
    chosen = max(
        (t for t in trials if t.condition == preferred),
        key=lambda t: (t.n_real, -t.support, -t.seed),
    )
    ids = nodes.support(chosen.support, chosen.n_real, fold=fold, choice=chosen.choice)
    key = box(nodes, chosen.fit_key, ids=ids, fold=fold)
    return Plan(nodes=nodes.nodes, trials=[chosen]), key


def _amounts(config: ExperimentConfig, *, n_train: int) -> list[tuple[float | None, int]]:
    grid = config.sweep
    amounts: list[tuple[float | None, int]] = [
        (fraction, amount_from_fraction(fraction, n_train=n_train))
        for fraction in grid.real_fraction
    ]
    for count in grid.real_count:
        amounts.append((None, check_count(count, n_train=n_train, key="sweep.real_count")))
    for count, n in Counter(count for _, count in amounts).items():
        if n > 1:
            raise InputError(
                f"sweep: two amounts give the same {count} images of the {n_train} in the train "
                "part; remove one"
            )
    return amounts


def _is_possible(
    config: ExperimentConfig, data: DataView, condition: str, *, n_real: int, n_train: int
) -> bool:
    """Whether a condition that reads unlabelled images finds one beside a trial's own."""
    finds_one = n_real < n_train or len(data.unlabelled) > 0
    return finds_one or not config.condition(condition).uses_unlabelled


def _left_out(config: ExperimentConfig, data: DataView) -> list[str]:
    """Notes on amounts that leave no unlabelled image to a condition that reads some.

    Raises:
        InputError: If a condition is left without an amount.
    """
    if data.unlabelled:
        return []
    notes: dict[str, None] = {}
    wants = [c for _, c in config.arms() if config.condition(c).uses_unlabelled]
    for fold in config.sweep.fold:
        n_train = len(data.folds[fold].train)
        amounts = _amounts(config, n_train=n_train)
        n_left = sum(count < n_train for _, count in amounts)
        names = ", ".join(dict.fromkeys(wants))
        if names and n_left == 0:
            raise InputError(
                f"sweep.real_count, sweep.real_fraction: all {n_train} train images are labelled, "
                f"and {names} needs unlabelled ones; add a smaller amount, or leave it out"
            )
        if names and n_left < len(amounts):
            notes[
                f"note: {names} not at {n_train} labelled images, which leave none unlabelled"
            ] = None
    return list(notes)


def _check_generator_count(config: ExperimentConfig, *, n_train: int) -> None:
    factors = [config.condition(name) for _, name in config.arms()]
    if any(f.labels == "fixed" for f in factors) and config.synthesis.folder is None:
        check_count(
            config.synthesis.generator_count, n_train=n_train, key="synthesis.generator_count"
        )


def _grid(nodes: Nodes, *, fold: int) -> list[TrialSpec]:
    config, trials = nodes.config, []
    n_train = len(nodes.data.folds[fold].train)
    grid, amounts = config.sweep, _amounts(config, n_train=n_train)
    for (segmenter, condition), (fraction, count), choice, support, seed in product(
        config.arms(), amounts, grid.choice, grid.support, grid.seed
    ):
        if not _is_possible(config, nodes.data, condition, n_real=count, n_train=n_train):
            continue
        cell = _Cell(
            condition=condition,
            segmenter=segmenter,
            real_fraction=fraction,
            n_real=count,
            choice=choice,
            support=support,
            seed=seed,
            fold=fold,
        )
        trials += _trials(nodes, cell)
    return trials


def _trials(nodes: Nodes, cell: _Cell) -> list[TrialSpec]:
    """The trials of a cell: one a generator and its seed, where its pairs differ with them."""
    config, factors = nodes.config, nodes.config.condition(cell.condition)
    generators = config.generator_names() if factors.has_generator else [""]
    seeds = config.sweep.generator_seed if factors.is_generated else [0]
    found: dict[str | None, TrialSpec] = {}
    for generator in generators:
        for seed in seeds:
            trial = _trial(nodes, cell, generator=generator, generator_seed=seed)
            # Pairs that no generator made, such as a folder's, are the same for each of them.
            found.setdefault(trial.fit_key, trial)
    return list(found.values())


def _trial(nodes: Nodes, cell: _Cell, *, generator: str, generator_seed: int) -> TrialSpec:
    config, fold = nodes.config, cell.fold
    factors = config.condition(cell.condition)
    ids = nodes.support(cell.support, cell.n_real, fold=fold, choice=cell.choice)
    source = Source(
        ids=ids,
        segmenter=cell.segmenter,
        seed=cell.seed,
        support=cell.support,
        generator=generator,
        generator_seed=generator_seed,
        fold=fold,
    )
    pairs = pairs_of(nodes, factors, source=source)
    is_foreign = pairs is not None and pairs.is_foreign
    fit_key = nodes.fit(
        cell.condition,
        factors,
        segmenter=cell.segmenter,
        ids=ids,
        seed=cell.seed,
        pairs=pairs,
        fold=fold,
        generator="" if is_foreign else generator,
    )
    n_generator: int | None = len(pairs.label_ids) if pairs else 0
    n_total: int | None = len({*ids, *(pairs.label_ids if pairs else [])})
    if is_foreign:
        n_generator = config.synthesis.folder_labels
        # Whether its maker's images are among ours is not known: the sum is the safe count.
        n_total = None if n_generator is None else cell.n_real + n_generator
    uses_val = nodes.settings(cell.segmenter).early_stopping_patience is not None
    n_val = len(nodes.data.folds[fold].val) if uses_val else 0
    return TrialSpec(
        condition=cell.condition,
        segmenter=cell.segmenter,
        generator="" if is_foreign else generator,
        pair_labels=factors.labels if factors.has_generator else "",
        real_fraction=cell.real_fraction,
        n_real=cell.n_real,
        choice=cell.choice,
        support=cell.support,
        seed=cell.seed,
        generator_seed=generator_seed,
        fold=fold,
        n_generator_labels=n_generator,
        n_val_labels=n_val,
        n_total_labels=None if n_total is None else n_total + n_val,
        n_unlabelled=len(pairs.unlabelled_ids) if pairs else 0,
        fit_key=fit_key,
        score_keys=scores(nodes, fit_key, segmenter=cell.segmenter, fold=fold),
    )


def _controls(nodes: Nodes, *, fold: int) -> list[TrialSpec]:
    made, n_train = [], len(nodes.data.folds[fold].train)
    for control in nodes.config.evaluation.controls:
        if control == "zero_shot":
            made += _zero_shot(nodes, fold=fold)
            continue
        keys = controls(nodes, control, fold=fold)
        n_labels = n_train if control == "mean_mask" else 0
        if keys:
            made.append(_control(control, keys=keys, fold=fold, n_labels=n_labels))
    return made


def _zero_shot(nodes: Nodes, *, fold: int) -> list[TrialSpec]:
    """Each pretrained segmenter as it is before any training; blocks of one encoder are one."""
    found: dict[str, TrialSpec] = {}
    for segmenter in nodes.config.segmenter_names():
        if row_of(nodes.settings(segmenter)).is_pretrained:
            keys = scores(nodes, None, segmenter=segmenter, fold=fold)
            spec = _control("zero_shot", keys=keys, fold=fold, segmenter=segmenter)
            found.setdefault(min(keys.values()), spec)
    return list(found.values())


def _control(
    name: str,
    *,
    keys: dict[tuple[str, str], str],
    fold: int,
    n_labels: int = 0,
    segmenter: str = "",
) -> TrialSpec:
    return TrialSpec(
        condition=name,
        segmenter=segmenter,
        real_fraction=None,
        n_real=0,
        choice="",
        support=0,
        seed=0,
        generator_seed=0,
        n_generator_labels=0,
        n_val_labels=0,
        n_total_labels=n_labels,
        fold=fold,
        fit_key=None,
        score_keys=keys,
    )
