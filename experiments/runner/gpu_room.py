"""Which stages a GPU's memory holds at the same time, by what like ones took before. Torch-free."""

from collections.abc import Sequence
from pathlib import Path

from experiments.config.schema import ExperimentConfig
from experiments.plan.nodes import Node
from experiments.runner.costs import Costs
from experiments.runner.gpus import gpu_memory_gib

_CONTEXT_GIB = 1.0
"""An allowance for what a process takes beside its tensors: the driver's context and kernels."""
_SLACK = 1.25
"""An allowance for more images than the runs before held."""


class GpuRoom:
    """The memory that was free on this machine's GPUs, and what stages take of it."""

    def __init__(self, config: ExperimentConfig) -> None:
        self._costs = Costs(Path(config.store.root), config=config)
        self._free_gib = gpu_memory_gib("free")
        self._alone: set[str] = set()

    def fits(self, node: Node, *, beside: Sequence[Node], devices: Sequence[int]) -> bool:
        """Whether a stage can start on these GPUs, without ids on the first one.

        Beside others only where like runs in the store tell what each of them takes, so that the
        first of its kind is alone and tells the rest.
        """
        if not beside:
            return True
        if not self._alone.isdisjoint(each.key for each in (node, *beside)):
            return False
        free = [self._free_gib[d] for d in devices or [0] if d < len(self._free_gib)]
        needs = [self._costs.gpu_gib(each) for each in (node, *beside)]
        if not free or None in free or None in needs:
            return False
        return sum(need * _SLACK + _CONTEXT_GIB for need in needs if need) <= min(free)

    def keep_alone(self, node: Node) -> None:
        """Let a stage share no GPU from now on."""
        self._alone.add(node.key)

    def learn(self, stage: str) -> None:
        """A stage of this kind has ended: its run tells more."""
        self._costs.forget(stage)
