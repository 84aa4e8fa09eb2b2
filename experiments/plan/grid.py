"""From a recipe and an indexed data set to stages, trials and their ids. Nothing is run here.

A stage's id is a hash over what determines its result: the stage's version, its part of the
config, its inputs' content and the ids of the stages before it. Paths, devices, worker counts and
dashboards are not in it, so the same work is found again by any sweep on any machine.
"""

from datamodules.errors import InputError
from datamodules.splits import amount_from_fraction, check_count
from experiments.config.schema import WITHOUT_GENERATOR, ExperimentConfig
from experiments.plan.fits import Nodes
from experiments.plan.nodes import DataView, Plan, TrialSpec
from experiments.plan.pairs import pairs_of
from experiments.plan.scores import box, controls, scores


def make_plan(config: ExperimentConfig, data: DataView) -> Plan:
    """Lay out the grid.

    Raises:
        InputError: For an amount that the train part cannot give.
    """
    trials: list[TrialSpec] = []
    nodes = Nodes(config, data)
    for fold in config.sweep.fold:
        _check_generator_count(config, n_train=len(data.folds[fold].train))
        trials += _grid(config, data, nodes=nodes, fold=fold)
    for fold in config.sweep.fold:
        trials += _controls(config, data, nodes=nodes, fold=fold)
    return Plan(nodes=nodes.nodes, trials=trials)


def box_plan(config: ExperimentConfig, data: DataView) -> tuple[Plan, str]:
    """The plan with the stage behind the box figure, and that stage's key.

    Its model is that of the first support and seed, with the most real images, of the condition
    `strong` where the recipe has it and else of its first one.

    Raises:
        InputError: If the recipe fits no SAM.
    """
    nodes = Nodes(config, data)
    fold = config.sweep.fold[0]
    trials = [t for t in _grid(config, data, nodes=nodes, fold=fold) if t.condition != "unet"]
    if not trials:
        raise InputError("sweep.condition: the box figure needs a SAM; add real or strong")
    preferred = "strong" if "strong" in config.sweep.condition else trials[0].condition
    chosen = max(
        (t for t in trials if t.condition == preferred),
        key=lambda t: (t.n_real, -t.support, -t.seed),
    )
    ids = nodes.support(chosen.support, chosen.n_real, fold=fold)
    key = box(nodes, chosen.fit_key, ids=ids, fold=fold)
    return Plan(nodes=nodes.nodes, trials=[chosen]), key


def _amounts(config: ExperimentConfig, *, n_train: int) -> list[tuple[float | None, int]]:
    amounts: list[tuple[float | None, int]] = []
    for fraction in config.sweep.real_fraction:
        amounts.append((fraction, amount_from_fraction(fraction, n_train=n_train)))
    for count in config.sweep.real_count:
        amounts.append((None, check_count(count, n_train=n_train, key="sweep.real_count")))
    seen: dict[int, float | None] = {}
    for fraction, count in amounts:
        if count in seen:
            raise InputError(
                f"sweep: two amounts give the same {count} images of the {n_train} in the train "
                "part; remove one"
            )
        seen[count] = fraction
    return amounts


def _check_generator_count(config: ExperimentConfig, *, n_train: int) -> None:
    named = {"synthetic", "synthetic_no_gate", "synthetic_random_subset", "real_resized"}
    if named & set(config.sweep.condition) and config.synthesis.folder is None:
        check_count(
            config.synthesis.generator_count, n_train=n_train, key="synthesis.generator_count"
        )


def _grid(config: ExperimentConfig, data: DataView, *, nodes: Nodes, fold: int) -> list[TrialSpec]:
    grid, trials = config.sweep, []
    amounts = _amounts(config, n_train=len(data.folds[fold].train))
    for condition in grid.condition:
        generator_seeds = [0] if condition in WITHOUT_GENERATOR else grid.generator_seed
        for fraction, count in amounts:
            for support in grid.support:
                for seed in grid.seed:
                    fitted: set[str | None] = set()
                    for generator_seed in generator_seeds:
                        trial = _trial(
                            config,
                            data,
                            nodes=nodes,
                            axes={
                                "condition": condition,
                                "real_fraction": fraction,
                                "n_real": count,
                                "support": support,
                                "seed": seed,
                                "generator_seed": generator_seed,
                                "fold": fold,
                            },
                        )
                        # Pairs that no generator made are the same for each of its seeds.
                        if trial.fit_key not in fitted:
                            fitted.add(trial.fit_key)
                            trials.append(trial)
    return trials


def _trial(config: ExperimentConfig, data: DataView, *, nodes: Nodes, axes: dict) -> TrialSpec:
    condition, count, fold = axes["condition"], axes["n_real"], axes["fold"]
    ids = nodes.support(axes["support"], count, fold=fold)
    pairs = pairs_of(
        nodes,
        condition,
        ids=ids,
        support=axes["support"],
        generator_seed=axes["generator_seed"],
        fold=fold,
    )
    fit_key = nodes.fit(condition, ids=ids, seed=axes["seed"], pairs=pairs, fold=fold)
    n_generator: int | None = len(pairs.label_ids) if pairs else 0
    n_total: int | None = len({*ids, *(pairs.label_ids if pairs else [])})
    if pairs is not None and pairs.is_foreign:
        n_generator = config.synthesis.folder_labels
        # Whether its maker's images are among ours is not known: the sum is the safe count.
        n_total = None if n_generator is None else count + n_generator
    uses_val = config.segmenter.early_stopping_patience is not None and condition != "unet"
    n_val = len(data.folds[fold].val) if uses_val else 0
    return TrialSpec(
        **axes,
        n_generator_labels=n_generator,
        n_val_labels=n_val,
        n_total_labels=None if n_total is None else n_total + n_val,
        fit_key=fit_key,
        score_keys=scores(nodes, fit_key, is_unet=condition == "unet", fold=fold),
    )


def _controls(
    config: ExperimentConfig, data: DataView, *, nodes: Nodes, fold: int
) -> list[TrialSpec]:
    made = []
    for control in config.evaluation.controls:
        keys = controls(nodes, control, fold=fold)
        n_labels = len(data.folds[fold].train) if control == "mean_mask" else 0
        if keys:
            made.append(
                TrialSpec(
                    condition=control,
                    real_fraction=None,
                    n_real=0,
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
            )
    return made
