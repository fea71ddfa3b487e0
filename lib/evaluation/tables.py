"""Numbers as aligned lines of text, for the log."""

from collections.abc import Sequence


def four_decimals(value: float) -> str:
    """Return a number as text with four decimals."""
    return f"{value:.4f}"


def aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Return `rows` of cells as lines of text: the first column flush left, the others flush right."""
    first, *others = (max(map(len, column)) for column in zip(*rows, strict=True))
    return [
        "  ".join(
            [f"{name:<{first}}", *(f"{cell:>{width}}" for cell, width in zip(cells, others, strict=True))]
        )
        for name, *cells in rows
    ]
