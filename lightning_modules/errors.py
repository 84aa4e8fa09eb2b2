"""The one exception for a user's mistake in weights or models."""


class WeightsError(ValueError):
    """Weights that cannot be used: one line that says which file, why, and what to do."""
