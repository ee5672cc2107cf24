"""Results as a page of Markdown: the facts, the table, what was wrong."""

from benchmarks.results import Results
from benchmarks.tabulating import LEGEND, remarks, sections


def page(results: Results) -> str:
    lines = ["# Results of the benchmark", ""]
    lines += ["Written by `make bench`; what each figure means is in docs/benchmarks.md.", ""]
    lines += ["| | |", "|---|---|"]
    lines += [
        f"| {name} | {_cell(f'`{fact}`' if name == 'command' else fact)} |" for name, fact in results.facts.items()
    ]
    lines += ["", *(f"- **{name}**: {_cell(about)}" for name, about in results.gateways.items()), "", LEGEND]
    for section in sections(results):
        lines += ["", f"## {section.name}", "", f"{section.about[0].upper()}{section.about[1:]}.", ""]
        lines += [f"| | | {' | '.join(results.gateways)} |", f"|---|---|{'---:|' * len(results.gateways)}"]
        lines += [
            f"| {row.label} | {row.unit} | {' | '.join(str(cell) for cell in row.cells)} |" for row in section.rows
        ]
    found = remarks(results)
    if found:
        lines += ["", "## To be known", "", *(f"- {_flat(remark)}" for remark in found)]
    return "\n".join([*lines, ""])


def _cell(text: str) -> str:
    return _flat(text).replace("|", "\\|")


def _flat(text: str) -> str:
    """On one line."""
    return " ".join(text.split())
