"""Words that sentences of every room share."""


def counted(number: float, noun: str) -> str:
    """Write a whole number with its noun: 1 exam, 2 exams."""
    return f"{number:.0f} {noun}" + ("" if number == 1 else "s")
