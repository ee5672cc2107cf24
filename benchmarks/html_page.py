"""Results as one HTML page that needs nothing else: the facts, a plot for each figure, the table, what was wrong."""

from html import escape

from benchmarks import svg
from benchmarks.results import Results
from benchmarks.scenarios import named
from benchmarks.tabulating import LEGEND, number, remarks, sections

_CURVES = {
    "delay": "delay of a chunk, ms",
    "ttft": "time to first token, ms",
    "plain": "a plain call, ms",
    "live": "a plain call meanwhile, ms",
    "refusal": "a refusal, ms",
}
_COLOURS = (
    "#8a8f98",
    "#b07d2b",
    "#3d8f5f",
    "#2f6fd0",
    "#7fa8e8",
    "#b3478f",
    "#c5533d",
    "#6b54b8",
    "#2a9aa8",
    "#8b6b4a",
)

STYLE = """
:root { color-scheme: light dark; --back: #fff; --text: #1d2127; --soft: #69707a; --line: #d9dde3; --card: #f6f7f9; }
@media (prefers-color-scheme: dark) {
  :root { --back: #15181d; --text: #e4e7eb; --soft: #98a0ab; --line: #343a43; --card: #1d2127; }
}
body { background: var(--back); color: var(--text); font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto;
  max-width: 1180px; padding: 0 1rem; }
h2 { margin: 2.4rem 0 0.2rem; } h3 { font-size: 0.9rem; font-weight: 600; margin: 0 0 0.6rem; }
p { color: var(--soft); margin: 0.2rem 0 1rem; } .wrong { color: #c5362b; }
.plots { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 30rem), 1fr)); }
.plots > div { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 0.8rem 1rem; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { border-bottom: 1px solid var(--line); padding: 0.25rem 0.8rem 0.25rem 0; text-align: right;
  white-space: nowrap; }
th:first-child, td:first-child, .facts td { text-align: left; } .facts td { white-space: normal; }
small { color: var(--soft); } svg { display: block; width: 100%; } svg text { fill: var(--text); font-size: 12px; }
.range { stroke: var(--text); stroke-width: 1.5; } .grid { stroke: var(--line); }
polyline { fill: none; stroke-width: 2; } .key { display: flex; flex-wrap: wrap; gap: 0.3rem 1.2rem; }
.key i { border-radius: 2px; display: inline-block; height: 0.7em; margin-right: 0.4em; width: 0.7em; }
"""


def page(results: Results) -> str:
    colours = {gateway: number % len(_COLOURS) for number, gateway in enumerate(results.gateways)}
    rules = "".join(
        f".g{number} {{ fill: {colour}; }} .l{number} {{ stroke: {colour}; }}" for number, colour in enumerate(_COLOURS)
    )
    facts = "".join(f"<tr><td>{escape(name)}<td>{escape(fact)}" for name, fact in results.facts.items())
    key = "".join(
        f'<span><i style="background: {_COLOURS[colours[name]]}"></i>{escape(name)} '
        f"<small>{escape(about)}</small></span>"
        for name, about in results.gateways.items()
    )
    said = "".join(
        f"<li{' class=wrong' if remark.startswith('!') else ''}>{escape(remark)}" for remark in remarks(results)
    )
    return "".join(
        (
            '<!doctype html><html lang="en"><meta charset="utf-8"><title>Gateway benchmark</title>',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<style>{STYLE}{rules}</style><h1>Gateway benchmark</h1>",
            f'<div class="wide"><table class="facts">{facts}</table></div>',
            f'<h2>What was measured</h2><div class="key">{key}</div><p>{escape(LEGEND)}</p>',
            f"<ul>{said}</ul>" if said else "",
            *(_scenario(results, name, colours) for name in results.scenarios),
            _table(results),
            "</html>\n",
        )
    )


def _scenario(results: Results, name: str, colours: dict[str, int]) -> str:
    plots = []
    scenario = named(name)
    for metric in scenario.metrics:
        if metric.own:
            continue
        items = [
            svg.Bar(
                gateway,
                figure,
                number(figure, metric.digits),
                colours[gateway],
                bool(results.errors(gateway, name)),
            )
            for gateway in results.gateways
            if (figure := results.figure(gateway, name, metric.key))
        ]
        if items:
            unit = f", {metric.unit}" if metric.unit else ""
            title = f"{metric.label}{unit} ({metric.better} is better)"
            plots.append(f"<div><h3>{escape(title)}</h3>{svg.bars(items)}</div>")
    for key, title in _CURVES.items():
        drawn = svg.curves({gateway: results.curve(gateway, name, key) for gateway in results.gateways}, colours)
        if drawn:
            plots.append(f"<div><h3>{escape(title)}, by quantile</h3>{drawn}</div>")
    about = f"{scenario.about[0].upper()}{scenario.about[1:]}."
    return f'<h2>{escape(name)}</h2><p>{escape(about)}</p><div class="plots">{"".join(plots)}</div>'


def _table(results: Results) -> str:
    heads = "".join(f"<th>{escape(name)}" for name in results.gateways)
    rows = []
    for section in sections(results):
        rows.append(f'<tr><th colspan="{len(results.gateways) + 1}">{escape(section.name)}')
        for row in section.rows:
            cells = "".join(
                f"<td{' class=wrong' if cell.invalid else ''}>{escape(cell.text)}"
                f"{f' <small>{escape(cell.beside)}</small>' if cell.beside else ''}"
                for cell in row.cells
            )
            rows.append(f"<tr><td>{escape(row.label)} <small>{row.unit}</small>{cells}")
    return f'<h2>All figures</h2><div class="wide"><table><tr><th>{heads}{"".join(rows)}</table></div>'
