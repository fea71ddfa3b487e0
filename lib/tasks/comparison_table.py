"""Tables of a comparison: means over images with intervals, marks and ranks, as rows of text and Markdown."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lib.evaluation.measures import CONTROLS, MEASURES, PASSES_BELOW, Measure
from lib.evaluation.resampling import FEWEST, Means, summarise
from lib.explain.methods import METHODS
from lib.runtime.spelling import printable, readable
from lib.tasks.comparison_results import Found, Told

NOT_BETTER = "✗"
_NONE = "–"
_MOST_ERROR = 10  # per cent
_IN_DISTRIBUTION = (
    "Single deletion is in distribution (IDSDS): the network was trained with erased patches "
    "(`--augment erase`)."
)
_OUT_OF_DISTRIBUTION = (
    "Single deletion leaves the distribution: nothing says that the network was trained with masked patches "
    "(`--augment erase`)."
)
MARKS = (
    "marks a method that does not beat the best control: the interval of their difference, on the same "
    "images, is not all in its favour."
)
PASSES = "passes of the network, forwards and backwards, that a method takes for the maps of an image"
_PASS_OR_FAIL = ("randomisation", "randomisation-smooth")


@dataclass(frozen=True)
class Cell:
    """A cell of a table: its text, the number it is sorted by, and whether it is marked.

    Attributes:
        text: the mean with its interval.
        number: the mean; NaN if there is none.
        rank: the rank and the share of draws in which it holds, as text; empty if it has none.
        is_marked: whether the method does not beat the best control.
    """

    text: str
    number: float
    rank: str = ""
    is_marked: bool = False


@dataclass(frozen=True)
class Table:
    """The table of one network.

    Attributes:
        network: its name.
        images: number of images.
        names: methods, then controls.
        measures: the measures that any of them has.
        counts: of how many images each of the measures is.
        cells: for each name, a cell for each measure.
        passes: passes of the network, forwards and backwards, for the maps of an image, for each name (not
            seconds, which differ each time: the same command is to give the same table).
        notes: sentences on how far the numbers can be relied on, in Markdown.
    """

    network: str
    images: int
    names: list[str]
    measures: list[Measure]
    counts: list[int]
    cells: list[list[Cell]]
    passes: list[int]
    notes: list[str]


def title_of(name: str) -> str:
    """Return the heading of the row of a method or a control."""
    return CONTROLS.get(name) or METHODS[name].title


def tables_of(found: Found, masked: Sequence[bool], asked: Collection[str]) -> list[Table]:
    """Return a table for each network.

    Args:
        found: the results.
        masked: for each network, whether it was trained with masked patches.
        asked: names of the measures asked for.
    """
    return [_table(found, number, masked[number], asked) for number in range(len(found.run.networks))]


def _table(found: Found, network: int, masked: bool, asked: Collection[str]) -> Table:
    rows = [row for row in found.rows if row.network == network]
    names = list(dict.fromkeys(row.method for row in sorted(rows, key=lambda row: _place(row.method))))
    is_control = np.array([name in CONTROLS for name in names])
    column = {name: place for place, name in enumerate(names)}
    measures, columns, counts = [], [], {}
    for measure in MEASURES.values():
        if measure.name not in asked:
            continue
        values = np.full((len(found.names), len(names)), np.nan)
        for row in rows:
            known = [each[measure.name] for each in row.numbers if each.get(measure.name) is not None]
            if known:
                values[row.image, column[row.method]] = sum(known) / len(known)  # type: ignore[arg-type]
        is_known = ~np.isnan(values).all(1)
        counts[measure.name] = int(is_known.sum())
        if is_known.any():
            measures.append(measure)
            columns.append(_column(measure, values[is_known], is_control))
    passes = [max(row.passes for row in rows if row.method == name) for name in names]
    cells = [list(each) for each in zip(*columns, strict=True)] if columns else [[] for _ in names]
    return Table(
        found.run.network_names[network],
        len(found.good),
        names,
        measures,
        [counts[measure.name] for measure in measures],
        cells,
        passes,
        _notes(found, network, counts, masked=masked),
    )


def _notes(found: Found, network: int, counts: Mapping[str, int], *, masked: bool) -> list[str]:
    images = len(found.good)
    has_few = any(0 < count < FEWEST and MEASURES[name].ranked for name, count in counts.items())
    notes = [f"Of fewer than {FEWEST} images there are neither intervals nor marks."] if has_few else []
    told = [each for each in found.told if each.network == network and each.truth[0]]
    if counts.get("agreement") and told:
        notes.append(_on_shapley_values(told))
    if counts.get("single-deletion"):
        notes.append(_IN_DISTRIBUTION if masked else _OUT_OF_DISTRIBUTION)
    # Measures that lack the same images for the same reason share a sentence.
    lacking: dict[tuple[int, str], list[str]] = {}
    for name, count in counts.items():
        measure = MEASURES[name]
        is_asked = not measure.of_boxes or count
        if count < images and is_asked:
            lacking.setdefault((count, measure.some), []).append(measure.title)
    for (count, why), titles in lacking.items():
        of = f"{count} of {images} images" if count else "no image"
        notes.append(_capital(f"{', '.join(titles)}: {of}, {why}."))
    return notes


def _place(name: str) -> tuple[bool, int]:
    order = list(CONTROLS if name in CONTROLS else METHODS)
    return name in CONTROLS, order.index(name)


def _column(measure: Measure, values: np.ndarray, is_control: np.ndarray) -> list[Cell]:
    found = summarise(values, is_control, larger_is_better=measure.larger_is_better)
    return [_cell(measure, found, place, is_control[place]) for place in range(len(is_control))]


def _cell(measure: Measure, found: Means, place: int, is_control: bool) -> Cell:
    mean = float(found.means[place])
    if math.isnan(mean):
        return Cell(_NONE, mean)
    if measure.name in _PASS_OR_FAIL:
        return Cell(f"{'pass' if mean < PASSES_BELOW else 'fail'} ({_two_places(mean)})", mean)
    low, high = found.low[place], found.high[place]
    text = _two_places(mean) + ("" if math.isnan(low) else f" [{_two_places(low)}, {_two_places(high)}]")
    if is_control or not measure.ranked:
        return Cell(text, mean)
    holds = float(found.holds[place])
    rank = f"{found.ranks[place]}" + ("" if math.isnan(low) else f" ({100 * holds:.0f} %)")
    beats = found.beats[place]
    return Cell(text, mean, rank, bool(not math.isnan(beats) and beats <= 0))


def _two_places(value: float) -> str:
    return readable(value, ".2f")


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _on_shapley_values(told: Sequence[Told]) -> str:
    if all(each.truth[0] == "exact" for each in told):
        return "Shapley values are exact: all coalitions of the patches were evaluated."
    share = 100 * sum(each.truth[1] for each in told) / len(told)
    said = (
        f"Shapley values are estimates ({told[0].truth[0]}) whose standard error is {share:.0f} % of the "
        "range of an image's values, on average"
    )
    much = ", too much to compare methods by: raise `--budget`, or lower `--grid`"
    return f"{said}{much if share > _MOST_ERROR else ''}."


def markdown(tables: Sequence[Table], settings: Sequence[str]) -> str:
    """Return the tables as Markdown, with what each number means."""
    parts = ["# Explanations compared", "\n".join(f"- {line}" for line in settings)]
    for table in tables:
        parts.append(f"## {_escaped(table.network)}, {table.images} image{'s' * (table.images != 1)}")
        parts += [_means(table)] if table.measures else ["Nothing was measured."]
        parts += [_ranks(table)] if any(measure.ranked for measure in table.measures) else []
        parts += table.notes
    known = {measure.name: measure for table in tables for measure in table.measures}
    parts.append("## How to read the numbers")
    parts.append(
        "Means over images with 95 % intervals by bootstrap over images, as is the share of draws in which a "
        f"rank holds. {NOT_BETTER} {MARKS} Controls know nothing of the network's answer. Passes: {PASSES}."
    )
    parts.append("\n".join(f"- **{each.title}** {_direction(each)} {about(each)}" for each in known.values()))
    return "\n\n".join(parts) + "\n"


def _direction(measure: Measure) -> str:
    return "(large is good)." if measure.larger_is_better else "(small is good)."


def about(measure: Measure) -> str:
    """Return how to read a measure, and what it does not show."""
    return (
        f"{measure.reads} Perfect: {measure.best}; knows nothing: {measure.worst}. {measure.weakness} "
        f"({measure.paper})"
    )


def counted(table: Table, place: int) -> str:
    """Return of how many images a measure is, if not of all."""
    return "" if table.counts[place] == table.images else f"{table.counts[place]} of {table.images}"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _means(table: Table) -> str:
    heads = []
    for place, each in enumerate(table.measures):
        count = counted(table, place)
        arrow = "↑" if each.larger_is_better else "↓"
        heads.append(f"{each.title} {arrow}" + (f" ({count} images)" if count else ""))
    lines = [_line(["method", *heads, "passes"]), _line(["---", *["---:"] * (len(heads) + 1)])]
    for name, cells, passes in zip(table.names, table.cells, table.passes, strict=True):
        shown = [cell.text + (f" {NOT_BETTER}" if cell.is_marked else "") for cell in cells]
        title = f"*{title_of(name)}*" if name in CONTROLS else title_of(name)
        lines.append(_line([title, *shown, _NONE if name in CONTROLS else str(passes)]))
    return "\n".join(lines)


def _ranks(table: Table) -> str:
    ranked = [place for place, measure in enumerate(table.measures) if measure.ranked]
    lines = [
        _line(["rank (share of draws)", *(table.measures[place].title for place in ranked)]),
        _line(["---", *["---:"] * len(ranked)]),
    ]
    for name, cells in zip(table.names, table.cells, strict=True):
        if name not in CONTROLS:
            lines.append(_line([title_of(name), *(cells[place].rank or _NONE for place in ranked)]))
    return "\n".join(lines)


def _escaped(text: str) -> str:
    return printable(text).replace("|", "\\|")
