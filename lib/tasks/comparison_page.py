"""The page of a comparison: one HTML file with its style, its script and its pictures in it."""

import html
import json
import math
from collections.abc import Sequence

from lib.evaluation.measures import CONTROLS, MEASURES, Measure
from lib.figures.explanations import Tile
from lib.runtime.spelling import printable
from lib.tasks.comparison_panels import Shown, picture
from lib.tasks.comparison_table import MARKS, NOT_BETTER, PASSES, Cell, Table, counted, title_of

_STYLE = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1240px; padding: 1rem; color: #262626; background: #fff;
       font: 16px/1.5 system-ui, "DejaVu Sans", sans-serif; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.25rem; margin-top: 2.5rem; } h3 { font-size: 1.05rem; }
h1, h2, h3, p, li, dd, figcaption { overflow-wrap: anywhere; }
/* A shadow at the right says that there is more; white covers it at the end. */
.scroll { overflow-x: auto; border: 1px solid #ccc; background:
  linear-gradient(to left, #fff 30%, transparent) right / 3rem 100% no-repeat local,
  linear-gradient(to left, rgb(0 0 0 / .25), transparent) right / 1.2rem 100% no-repeat scroll; }
.scroll:focus-visible, button:focus-visible, a:focus-visible {
  outline: 3px solid #0072B2; outline-offset: 2px; }
table { border-collapse: collapse; font-size: .875rem; font-variant-numeric: tabular-nums; width: 100%; }
th, td { padding: .4rem .6rem; border-bottom: 1px solid #e3e3e3; text-align: right; vertical-align: top; }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0;
  background: #fff; min-width: 7rem; }
thead th { background: #f4f4f4; } thead th:first-child { background: #f4f4f4; }
th button { font: inherit; font-weight: 600; color: inherit; background: none; border: 0; padding: .2rem;
            cursor: pointer; text-align: inherit; }
th[aria-sort=ascending] button::after { content: " ▲"; }
th[aria-sort=descending] button::after { content: " ▼"; }
.interval, .rank { display: block; color: #595959; white-space: nowrap; font-weight: normal; }
.control th { font-weight: normal; font-style: italic; }
.mark { color: #9a3412; font-weight: 700; }
.panels { display: grid; grid-template-columns: repeat(auto-fill, minmax(150px, 1fr)); gap: .75rem; }
figure { margin: 0; } figcaption { font-size: .8rem; line-height: 1.35; }
figure button { display: block; width: 100%; padding: 0; border: 1px solid #ccc; background: none;
  cursor: zoom-in; }
img { display: block; width: 100%; height: auto; }
dialog { border: 0; padding: 1rem; max-width: 96vw; max-height: 96vh; overflow: auto; }
dialog::backdrop { background: rgb(0 0 0 / .7); }
dialog img { width: min(80vw, 75vh); margin: .5rem auto; }
dl.numbers { display: grid; grid-template-columns: auto auto; gap: .1rem 1rem; font-size: .875rem; }
dt { font-weight: 600; } dd { margin: 0 0 0.75rem; }
.numbers dt { font-weight: normal; } .numbers dd { margin: 0; }
@media (max-width: 500px) { body { padding: .75rem; font-size: 15px; }
  .panels { grid-template-columns: repeat(2, 1fr); } th, td { padding: .3rem .4rem; } }
"""
_SCRIPT = """
for (const table of document.querySelectorAll('table')) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => head.querySelector('button').addEventListener('click', () => {
    const up = head.getAttribute('aria-sort') !== 'ascending';
    heads.forEach(each => each.removeAttribute('aria-sort'));
    head.setAttribute('aria-sort', up ? 'ascending' : 'descending');
    const body = table.tBodies[0], value = row => row.cells[column].dataset.value;
    const rows = [...body.rows].sort((a, b) => {
      const x = value(a), y = value(b);
      if (x === '' || y === '') return (x === '') - (y === '');  // without a value: last, either way
      const order = column ? x - y : x.localeCompare(y);
      return up ? order : -order;
    });
    body.append(...rows);
  }));
}
const dialog = document.querySelector('dialog');
for (const figure of document.querySelectorAll('figure')) {
  figure.querySelector('button').addEventListener('click', () => {
    dialog.querySelector('img').src = figure.querySelector('img').src;
    dialog.querySelector('img').alt = figure.querySelector('img').alt;
    dialog.querySelector('h3').textContent = figure.dataset.title;
    const list = dialog.querySelector('dl');
    list.replaceChildren();
    for (const [name, number] of JSON.parse(figure.dataset.numbers)) {
      for (const [kind, text] of [['dt', name], ['dd', number]]) {
        list.append(Object.assign(document.createElement(kind), { textContent: text }));
      }
    }
    dialog.showModal();
  });
}
"""


def page(tables: Sequence[Table], panels: Sequence[Shown], settings: Sequence[str]) -> str:
    """Return the page as HTML, which needs no other file and no network."""
    known = {measure.name: measure for table in tables for measure in table.measures}
    body = [
        "<h1>Explanations compared</h1>",
        f"<ul>{''.join(f'<li>{_text(line)}</li>' for line in settings)}</ul>",
        "<p>Means over images with 95 % intervals by bootstrap over images; the rank among methods, and in "
        f'how many draws of the bootstrap it holds. <span class="mark">{NOT_BETTER}</span> '
        f"{MARKS} Controls (in italics) know nothing of the network's answer. A click on a heading sorts the "
        f"table.</p><p>Passes: {PASSES}.</p>",
        *(_table(table) for table in tables),
        *(_panels(each) for each in panels),
        "<h2>How to read the numbers</h2>",
        f"<dl>{''.join(_explained(measure) for measure in known.values())}</dl>",
        '<dialog aria-label="large panel"><form method="dialog"><button>close</button></form>'
        '<h3></h3><img alt=""><dl class="numbers"></dl></dialog>',
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>Explanations compared</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(body)
        + f"\n<script>{_SCRIPT}</script>\n</body>\n</html>\n"
    )


def _text(text: str) -> str:
    return html.escape(printable(text))


def _table(table: Table) -> str:
    heads = "".join(
        f'<th scope="col"><button title="{_text(each.reads)}">{_text(each.title)} '
        f"{'↑' if each.larger_is_better else '↓'}</button>{_counted(table, place)}</th>"
        for place, each in enumerate(table.measures)
    )
    rows = []
    for name, cells, passes in zip(table.names, table.cells, table.passes, strict=True):
        kind = ' class="control"' if name in CONTROLS else ""
        title = title_of(name)
        cost = "<td data-value=''>–</td>"
        if name not in CONTROLS:
            cost = f'<td data-value="{passes}">{passes}</td>'
        rows.append(
            f'<tr{kind}><th scope="row" data-value="{_text(title)}">{_text(title)}</th>'
            f"{''.join(map(_cell, cells))}{cost}</tr>"
        )
    said = f"{table.network}, {table.images} image{'s' * (table.images != 1)}"
    return (
        f"<h2>{_text(said)}</h2>\n"
        f'<div class="scroll" tabindex="0" role="region" aria-label="{_text(said)}"><table><thead><tr>'
        f'<th scope="col"><button>method</button></th>{heads}'
        f'<th scope="col"><button title="{PASSES}">passes</button></th>'
        f"</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
        + "".join(f"<p>{_text(note.replace('`', ''))}</p>" for note in table.notes)
    )


def _counted(table: Table, place: int) -> str:
    count = counted(table, place)
    return f'<span class="interval">{count} images</span>' if count else ""


def _cell(cell: Cell) -> str:
    value = "" if math.isnan(cell.number) else f"{cell.number:.6f}"
    mean, _, interval = cell.text.partition(" ")
    mark = f' <span class="mark" title="not better than the best control">{NOT_BETTER}</span>'
    return (
        f'<td data-value="{value}">{_text(mean)}{mark if cell.is_marked else ""}'
        + (f'<span class="interval">{_text(interval)}</span>' if interval else "")
        + (f'<span class="rank">rank {_text(cell.rank)}</span>' if cell.rank else "")
        + "</td>"
    )


def _panels(each: Shown) -> str:
    figures = [_figure(each.image, "", each.tiles[0], {})]
    for name, tile, numbers in zip(each.names, each.tiles[1:], each.numbers, strict=True):
        figures.append(_figure(title_of(name), " · ".join(tile.title[1:]), tile, numbers))
    return (
        f"<h2>{_text(each.image)}, {_text(each.network)}</h2><p>Explained: {_text(each.target)}.</p>"
        f'<div class="panels">{"".join(figures)}</div>'
    )


def _figure(title: str, note: str, tile: Tile, numbers: dict[str, float | None]) -> str:
    listed = [[MEASURES[name].title, f"{value:.3f}"] for name, value in numbers.items() if value is not None]
    zero = " (zero everywhere)" if tile.map is not None and not tile.map.any() else ""
    about = f"<br>{_text(note)}" if note else ""
    return (
        f'<figure data-title="{_text(title)}" data-numbers="{html.escape(json.dumps(listed))}">'
        f'<button><img alt="{_text(title)}{zero}" src="{picture(tile)}"></button>'
        f"<figcaption>{_text(title)}{zero}{about}</figcaption></figure>"
    )


def _explained(measure: Measure) -> str:
    direction = "large is good" if measure.larger_is_better else "small is good"
    return (
        f"<dt>{_text(measure.title)} ({direction})</dt><dd>{_text(measure.reads)} Perfect: "
        f"{_text(measure.best)}; knows nothing: {_text(measure.worst)}. <em>What it does not show:</em> "
        f"{_text(measure.weakness)} <small>{_text(measure.paper)}</small></dd>"
    )
