"""`sonosweep data index`: what a data folder holds, for a person."""

from typing import Any

from rich.console import Console
from rich.table import Table


def print_summary(found: dict[str, Any], console: Console) -> None:
    """Print what cannot be right, the summary as a table, and the other findings below."""
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    for name, text in _lines(found):
        table.add_row(name, text)
    doubted = found["implausible"]
    _print_list("Cannot be right; `sonosweep sweep` refuses these data:", doubted, console)
    console.print(f"{found['root']} ({found['layout']} layout)")
    console.print(table)
    _print_list("Findings:", [each for each in found["findings"] if each not in doubted], console)


def _print_list(title: str, sentences: list[str], console: Console) -> None:
    if sentences:
        console.print(title)
    for sentence in sentences:
        console.print(f"- {sentence}", markup=False, soft_wrap=True)


def _lines(found: dict[str, Any]) -> list[tuple[str, str]]:
    frames = ", ".join(
        f"{count} with {n} frame{'s' if n != '1' else ''}"
        for n, count in found["frames_per_exam"].items()
    )
    sizes = list(found["sizes"].items())
    others = sum(count for _, count in sizes[1:])
    size_text = f"{sizes[0][0]} ({sizes[0][1]})"
    if others:
        size_text += f", {others} in {len(sizes) - 1} other sizes"
    lines = [
        ("images", str(found["images"])),
        ("exams", f"{found['exams']} ({frames})"),
        ("groups", f"{found['groups']} (exams joined by near-duplicates; splits keep them whole)"),
        ("annotations", _counts(found["annotations"])),
        ("open outlines", ", ".join(found["open_outlines"]) or "none"),
        ("at the border", ", ".join(found["touching_border"]) or "none"),
        ("sizes", size_text),
        ("pixel size", _range(found["pixel_size_mm"], digits=4)),
        ("HC", _range(found["hc_mm"], digits=1)),
        ("trimesters", _trimesters(found["trimesters"])),
    ]
    for kind, error in found["hc_error_mm"].items():
        text = f"mean {error['mean']:.4f} mm, max {error['max']:.3f} mm over {error['n']}"
        lines.append((f"HC fit, {kind.replace('_', ' ')}", text))
    pairs = ", ".join(" = ".join(pair) for pair in found["duplicates"])
    lines.append(("near-duplicates", pairs or "none"))
    if "unlabelled_test_images" in found:
        lines.append(("unlabelled test", f"{found['unlabelled_test_images']} images"))
    lines.append(("manifest", f"sha256 {found['manifest_sha256'][:16]}"))
    return lines


def _trimesters(counts: dict[str, int]) -> str:
    if not any(counts.values()):
        return "unknown (no head circumference)"
    return f"{_counts(counts)} (derived from HC: from 98 and 260 mm)"


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{name}: {count}" for name, count in counts.items())


def _range(limits: dict[str, float] | None, *, digits: int) -> str:
    if limits is None:
        return "unknown"
    low, high, mean = (f"{limits[name]:.{digits}f}" for name in ("min", "max", "mean"))
    return f"{low} to {high} mm, mean {mean}"
