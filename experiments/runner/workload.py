"""How much work a plan still is: the units of each stage, images embedded before left out."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from datamodules.embeddings import EmbeddingStore
from experiments.plan.nodes import Node, Plan
from experiments.plan.stage_table import STAGES
from experiments.runner.costs import START_S, Cost, Costs, bytes_of
from experiments.runner.schedule import Task
from experiments.store.runs import Failure, RunStore, read_failure
from lightning_modules.segmenters.sam.config import FRAME_SIDE_PX

View = tuple[str, int]
"""Content hash of an image with its mask, and the number of a view of it."""


def units_to_do(
    nodes: Mapping[str, Node],
    *,
    done: Collection[str],
    is_embedded: Callable[[Node, View], bool] | None = None,
) -> dict[str, int]:
    """Count the units of each stage that is not done.

    An image or view that several stages embed is counted for the first of them alone. Pairs are
    counted whole: what they will show is not known before they are made.

    Args:
        nodes: Stages in the plan's order.
        done: Those that are done.
        is_embedded: Whether the store holds a view; None takes those of done stages alone.

    Returns:
        Units by stage, from 0 on; without the done ones.
    """
    seen: set[tuple[str, View]] = set()
    for key in done:
        seen |= _views(nodes[key])
    units = {}
    for key, node in nodes.items():
        if key in done:
            continue
        views = _views(node)
        if not views:
            units[key] = node.steps
            continue
        new = views - seen
        seen |= new
        units[key] = sum(is_embedded is None or not is_embedded(node, view) for _, view in new)
    return units


def _views(node: Node) -> set[tuple[str, View]]:
    """What a stage embeds, with the kind of view; empty for another stage and for pairs."""
    if not STAGES[node.stage].is_embedding or "images" not in node.content:
        return set()
    augment = node.content.get("augment")
    kind, n_views = (augment["strength"], augment["n_views"]) if augment else ("", 1)
    # Views of two strengths differ; view 0 is the image itself under any.
    return {
        (kind if view else "", (pair_hash, view))
        for _, pair_hash in node.content["images"]
        for view in range(n_views)
    }


def in_store(folder: Path) -> Callable[[Node, View], bool]:
    """Whether a view lies in a folder of embeddings, by the key that the stage would give it."""
    # Torch comes with the keys of augmented views: only where it is asked for.
    from experiments.store.embedding_keys import embedding_key

    store = EmbeddingStore(folder)

    def found(node: Node, view: View) -> bool:
        pair_hash, number = view
        key, _ = embedding_key(
            node.content,
            frame_side_px=FRAME_SIDE_PX[node.content["encoder"]["backbone"]],
            pair_hash=pair_hash,
            view=number,
        )
        return key in store and (number == 0 or store.has_view(key))

    return found


@dataclass(frozen=True, kw_only=True)
class Work:
    """What a plan still is, by stage in the plan's order."""

    done: set[str]
    failures: dict[str, Failure]
    """Last attempts that failed, of stages that are not done."""
    given_up: set[str]
    """Those of them that are not tried again."""
    blocked: set[str]
    """Stages that need one of those."""
    units: dict[str, int]
    """Units of work of each stage to do."""
    costs: dict[str, Cost]
    """What one of them costs."""
    tasks: dict[str, Task]
    """The stages to do, to schedule."""
    bytes: dict[str, float | None]
    """What each leaves in the store; None where none like it was measured."""


def work_of(plan: Plan, *, store: RunStore, costs: Costs, retry_failed: bool) -> Work:
    """Find what is left of a plan and price it.

    Args:
        plan: The plan.
        store: Where it is done.
        costs: What a unit costs there.
        retry_failed: Whether what failed by an error of its own is tried again.
    """
    nodes = plan.nodes
    done = {key for key, node in nodes.items() if store.is_done(node.stage, node.id)}
    failures = {
        key: failure
        for key, node in nodes.items()
        if key not in done
        and (failure := read_failure(store.run_dir(node.stage, node.id))) is not None
    }
    given_up = set() if retry_failed else {k for k, f in failures.items() if f.kind == "error"}
    blocked: set[str] = set()
    for key, node in nodes.items():
        if key not in done | given_up and (given_up | blocked) & {*node.upstream.values()}:
            blocked.add(key)
    left = {key: node for key, node in nodes.items() if key not in done | given_up | blocked}
    embeddings = store.root / "store" / "embeddings"
    # Asking costs the import of torch: not where there is nothing to find.
    asks = embeddings.is_dir() and any(_views(node) for node in left.values())
    units = units_to_do(
        {key: node for key, node in nodes.items() if key in done or key in left},
        done=done,
        is_embedded=in_store(embeddings) if asks else None,
    )
    priced = {key: costs.of(node.stage, costs.traits(node)) for key, node in left.items()}
    return Work(
        done=done,
        failures=failures,
        given_up=given_up,
        blocked=blocked,
        units=units,
        costs=priced,
        tasks=tasks_of(units, nodes=left, costs=priced),
        bytes={k: bytes_of(units[k], cost=cost, root=store.root) for k, cost in priced.items()},
    )


def tasks_of(
    units: Mapping[str, int], *, nodes: Mapping[str, Node], costs: Mapping[str, Cost]
) -> dict[str, Task]:
    """Stages as tasks to schedule.

    Args:
        units: Units of work by stage, in the plan's order.
        nodes: The stages.
        costs: What a unit of each costs.
    """
    return {
        key: Task(
            seconds=START_S + costs[key].seconds_per_unit * count,
            after=tuple(nodes[key].upstream.values()),
        )
        for key, count in units.items()
    }
