"""The condition `ungated`, of factors that are there."""

from experiments.config.conditions import CONDITIONS, ConditionConfig, ConditionRow

CONDITIONS["ungated"] = ConditionRow(
    factors=ConditionConfig(pairs="synthetic", gate="off"),
    label="+ synthetic, same labels, no gate",
    phrase="ungated synthetic pairs on the same label budget",
    color="#b15928",
    marker="*",
)
