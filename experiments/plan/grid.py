"""From a recipe and an indexed data set to stages, trials and their ids. Nothing is run here.

A stage's id is a hash over what determines its result: the stage's version, its part of the
config, its inputs' content and the ids of the stages before it. Paths, devices, worker counts and
dashboards are not in it, so the same work is found again by any sweep on any machine.
"""

from collections import Counter
from dataclasses import replace
from itertools import product

from datamodules.errors import InputError
from datamodules.splits import amount_from_fraction, check_count
from experiments.config.conditions import share_of_pairs
from experiments.config.grid import Cell
from experiments.config.schema import ExperimentConfig
from experiments.plan.fits import Nodes
from experiments.plan.nodes import DataView, Plan, TrialSpec
from experiments.plan.pairs import pairs_of
from experiments.plan.scores import box, controls, scores
from lightning_modules.segmenters.table import row_of


def make_plan(config: ExperimentConfig, data: DataView) -> Plan:
    """Lay out the grid; InputError for an amount that the train part cannot give."""
    trials: list[TrialSpec] = []
    nodes = Nodes(config, data)
    for fold in config.sweep.fold:
        trials += _grid(nodes, fold=fold)
    for fold in config.sweep.fold:
        trials += _controls(nodes, fold=fold)
    return Plan(nodes=nodes.nodes, trials=trials, notes=_notes(config, data, trials=trials))


def box_plan(config: ExperimentConfig, data: DataView) -> tuple[Plan, str]:
    """The plan with the stage behind the box figure, and that stage's key.

    Its model takes a prompt, and is that of the first choice, support and seed, with the most real
    images, of the condition `strong` where such a model has it and else of its first one.

    Raises:
        InputError: If no segmenter of the recipe takes a prompt.
    """
    nodes, fold = Nodes(config, data), config.sweep.fold[0]
    trials = [t for t in _grid(nodes, fold=fold) if config.takes_prompt(t.segmenter)]
    if not trials:
        raise InputError("sweep.segmenter: the box figure needs one that takes a box; add sam")
    # Of these alone: a single arm may be the only one that takes a box.
    strong = [trial for trial in trials if trial.condition == "strong"]
    preferred = strong or [trial for trial in trials if trial.condition == trials[0].condition]
    chosen = max(preferred, key=lambda t: (t.n_real, -t.support, -t.seed))
    return Plan(nodes=nodes.nodes, trials=[chosen]), box(nodes, chosen)


def _amounts(config: ExperimentConfig, *, n_train: int) -> list[tuple[float | None, int]]:
    grid = config.sweep
    amounts: list[tuple[float | None, int]] = [
        (fraction, amount_from_fraction(fraction, n_train=n_train))
        for fraction in grid.real_fraction
    ]
    amounts += [
        (None, check_count(count, n_train=n_train, key="sweep.real_count"))
        for count in grid.real_count
    ]
    for count, n in Counter(count for _, count in amounts).items():
        if n > 1:
            raise InputError(
                f"sweep: two amounts give the same {count} images of the {n_train} in the train "
                "part; remove one"
            )
    return amounts


def _notes(config: ExperimentConfig, data: DataView, *, trials: list[TrialSpec]) -> list[str]:
    """What the settings lead to that one may not expect."""
    notes = [*_left_out(config, data), *_without_primary(config, trials)]
    for name in config.segmenter_names():
        settings = config.segmenter_named(name)
        rises = getattr(settings, "warmup_steps", 0)
        if settings.epochs is None and rises >= settings.steps:
            notes.append(
                f"note: {name}: the learning rate rises over warmup_steps={rises}, and the fit "
                f"has {settings.steps} steps: it never falls"
            )
    for segmenter, condition in config.arms():
        settings, factors = config.segmenter_named(segmenter), config.condition(condition)
        size, share, n_sets = settings.batch_size, settings.synthetic_share, factors.n_sets
        n_pairs = round(share_of_pairs(share, n_sets=n_sets) * size)
        if n_sets and settings.epochs is None and n_pairs == size:
            notes.append(
                f"note: {condition}: synthetic_share={share} of a batch of {size} leaves no place "
                f"for a real image: {segmenter} sees none, whatever the amount"
            )
    return notes


def _without_primary(config: ExperimentConfig, trials: list[TrialSpec]) -> list[str]:
    """A note where the sweep lacks a side of the primary contrast."""
    primary, left = config.statistics.primary, trials
    names = primary.condition, primary.baseline
    start, end = f"compares {' with '.join(names)}", "no comparison is the primary one"
    is_there = {
        "condition": lambda spec: spec.condition in names,
        "real_count": lambda s: s.real_fraction is None and s.n_real == primary.real_count,
        "real_fraction": lambda spec: spec.real_fraction == primary.real_fraction,
        "prompt": lambda spec: primary.prompt in {prompt for _, prompt in spec.score_keys},
        "segmenter": lambda spec: spec.segmenter == primary.segmenter,
        "choice": lambda spec: spec.choice == primary.choice,
        # Without one a trial stands beside those of each.
        "generator": lambda spec: spec.generator in ("", primary.generator),
    }
    del is_there["real_fraction" if primary.real_fraction is None else "real_count"]
    for key, test in is_there.items() if primary.enabled else ():
        left = [spec for spec in left if test(spec)]
        absent = [name for name in names if name not in {spec.condition for spec in left}]
        if absent:
            at = "" if key == "condition" else f" at {key}={getattr(primary, key)}"
            lacks = f"the sweep has no {' and no '.join(absent)}{at}"
            return [f"note: statistics.primary {start}, and {lacks}: {end}"]
    return []


def _left_out(config: ExperimentConfig, data: DataView) -> list[str]:
    """Notes on amounts that leave no unlabelled image to a condition that reads some.

    Raises:
        InputError: If a condition is left without an amount.
    """
    wants = (name for _, name in config.arms() if config.condition(name).uses_unlabelled)
    names = ", ".join(dict.fromkeys(wants))
    if not names or data.unlabelled:
        return []
    notes: list[str] = []
    for fold in config.sweep.fold:
        n_train = len(data.folds[fold].train)
        counts = [count for _, count in _amounts(config, n_train=n_train)]
        if counts == [n_train]:
            raise InputError(
                f"sweep.real_count, sweep.real_fraction: all {n_train} train images are labelled, "
                f"and {names} needs unlabelled ones; add a smaller amount, or leave it out"
            )
        if n_train in counts:
            left = f"{n_train} labelled images, which leave none unlabelled"
            notes.append(f"note: {names} not at {left}")
    return list(dict.fromkeys(notes))


def _grid(nodes: Nodes, *, fold: int) -> list[TrialSpec]:
    """The trials of a fold: one a generator and its seed, where a cell's pairs differ with them."""
    config, grid, trials = nodes.config, nodes.config.sweep, []
    n_train = len(nodes.data.folds[fold].train)
    for (segmenter, condition), (fraction, count), choice, support, seed in product(
        config.arms(), _amounts(config, n_train=n_train), grid.choice, grid.support, grid.seed
    ):
        factors = config.condition(condition)
        if factors.uses_unlabelled and count == n_train and not nodes.data.unlabelled:
            continue
        generators = config.generator_names() if factors.source.has_generator else [""]
        generator_seeds = grid.generator_seed if factors.source.is_generated else [0]
        found: dict[str | None, TrialSpec] = {}
        for generator, generator_seed in product(generators, generator_seeds):
            cell = Cell(
                condition=condition,
                segmenter=segmenter,
                generator=generator,
                real_fraction=fraction,
                n_real=count,
                choice=choice,
                support=support,
                seed=seed,
                generator_seed=generator_seed,
                fold=fold,
            )
            trial = _trial(nodes, cell)
            # Pairs that no generator made, such as a folder's, are the same for each of them.
            found.setdefault(trial.fit_key, trial)
        trials += found.values()
    return trials


def _trial(nodes: Nodes, cell: Cell) -> TrialSpec:
    factors, ids = nodes.config.condition(cell.condition), nodes.images_of(cell)
    sets, n_val = pairs_of(nodes, factors, cell=cell), len(nodes.validation(cell))
    label_ids = {sample_id for each in sets for sample_id in each.label_ids}
    n_generator: int | None = len(label_ids)
    n_total: int | None = len(label_ids.union(ids)) + n_val
    if any(each.is_foreign for each in sets):
        cell, n_generator = replace(cell, generator=""), nodes.config.synthesis.folder_labels
        # Whether its maker's images are among ours is not known: the sum is the safe count.
        n_total = None if n_generator is None else cell.n_real + n_generator + n_val
    fit_key = nodes.fit(factors, cell=cell, ids=ids, sets=sets)
    return TrialSpec(
        **vars(cell),
        pair_labels=factors.pair_labels,
        n_generator_labels=n_generator,
        n_val_labels=n_val,
        n_total_labels=n_total,
        n_unlabelled=len({sample_id for each in sets for sample_id in each.unlabelled_ids}),
        fit_key=fit_key,
        score_keys=scores(nodes, fit_key, segmenter=cell.segmenter, fold=cell.fold),
    )


def _controls(nodes: Nodes, *, fold: int) -> list[TrialSpec]:
    """Controls without a network, and each pretrained segmenter as it is before any training."""
    found: dict[str, TrialSpec] = {}
    n_train = len(nodes.data.folds[fold].train)
    for control in nodes.config.evaluation.controls:
        segmenters = [""]
        if control == "zero_shot":
            names = nodes.config.segmenter_names()
            segmenters = [name for name in names if row_of(nodes.settings(name)).has_zero_shot]
        for segmenter in segmenters:
            if segmenter:
                keys = scores(nodes, None, segmenter=segmenter, fold=fold)
            else:
                keys = controls(nodes, control, fold=fold)
            if not keys:
                continue
            spec = TrialSpec(
                condition=control,
                segmenter=segmenter,
                choice="",
                fold=fold,
                n_total_labels=n_train if control == "mean_mask" else 0,
                score_keys=keys,
            )
            # Blocks of one encoder are one.
            found.setdefault(min(keys.values()), spec)
    return list(found.values())
