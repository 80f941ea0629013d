"""The report as one HTML page that needs no server, no script and no other file."""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Sequence
from pathlib import Path

from lowcomm import __version__
from lowcomm.errors import StorageError
from lowcomm.report import plots
from lowcomm.report.figures import run_figures
from lowcomm.report.runs import Run
from lowcomm.report.series import failed
from lowcomm.report.table import ISLAND_HEADINGS, figure_rows, island_rows

FAILURES_SHOWN = 50

STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, "DejaVu Sans", sans-serif; color: #1d1d1f; background: #f5f6f8; margin: 0; }
main { max-width: 1080px; margin: 0 auto; padding: 28px 20px 60px; }
h1 { font-size: 26px; margin: 0 0 2px; } h2 { font-size: 19px; margin: 34px 0 10px; }
.sub { color: #63666b; margin: 0 0 18px; }
.card { background: #fff; border: 1px solid #e3e5e8;
  border-radius: 8px; padding: 14px 18px; margin: 0 0 16px; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(190px, 1fr));
  gap: 12px; margin: 0 0 16px; }
.tile { background: #fff; border: 1px solid #e3e5e8; border-radius: 8px; padding: 12px 16px; }
.tile b { display: block; font-size: 22px; font-weight: 650; } .tile span { color: #63666b; font-size: 13px; }
.bad b { color: #b3261e; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: 5px 14px 5px 0; border-bottom: 1px solid #eceef0; vertical-align: top; }
th { font-weight: 600; color: #45484d; } tr:last-child td { border-bottom: 0; }
.wide { overflow-x: auto; } .wide td, .wide th { white-space: nowrap; font-size: 13.5px; }
img { width: 100%; height: auto; display: block; }
code, pre { font: 12.5px/1.45 ui-monospace, "DejaVu Sans Mono", monospace; }
pre { overflow-x: auto; margin: 8px 0 0; }
summary { cursor: pointer; font-weight: 600; }
"""


def write_page(runs: Sequence[Run], path: Path) -> None:
    """Draw the report of one or more runs into an HTML file.

    Raises:
        StorageError: the file can't be written.
    """
    text = render_page(runs)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise StorageError(f"{path}: the report can't be written: {error.strerror or error}") from error


def render_page(runs: Sequence[Run]) -> str:
    """The whole page as text, its plots embedded."""
    body = []
    if len(runs) > 1:
        body.append(f"<h1>{len(runs)} runs compared</h1>")
        body.append(f'<p class="sub">lowcomm {html.escape(__version__)}</p>')
        body += _losses(runs)
    body += [_run_section(run) for run in runs]
    title = html.escape(", ".join(run.run_id for run in runs))
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>lowcomm: {title}</title><style>{STYLE}</style></head>\n"
        f"<body><main>\n{chr(10).join(body)}\n</main></body></html>\n"
    )


def _run_section(run: Run) -> str:
    figures = run_figures(run)
    version = str(run.islands[0].start.get("version", ""))
    parts = [
        f"<h1>Run {html.escape(run.run_id)}</h1>",
        f'<p class="sub">{html.escape(", ".join(map(str, run.paths)))}, lowcomm {html.escape(version)}</p>',
        _tiles(run),
        '<div class="card"><table>',
        *(
            f"<tr><td>{html.escape(what)}</td><td>{html.escape(value)}</td></tr>"
            for what, value in figure_rows(figures)
        ),
        "</table></div>",
        "<h2>Learning</h2>",
        *_losses([run]),
        "<h2>Steps</h2>",
        _image("Learning rate, gradient norm, speed and memory", plots.training_panels(run)),
        "<h2>Rounds</h2>",
        _image("Round timeline", plots.round_timeline(run)),
        _image("Cosine and norm of the pseudo-gradients", plots.agreement(run)),
        _failures(run),
        "<h2>Islands</h2>",
        '<div class="card wide"><table><tr>',
        *(f"<th>{html.escape(heading)}</th>" for heading in ISLAND_HEADINGS),
        "</tr>",
        *(
            "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>"
            for row in island_rows(run, figures)
        ),
        "</table></div>",
        _configuration(run),
    ]
    return "\n".join(parts)


def _losses(runs: Sequence[Run]) -> list[str]:
    return [
        _image("Loss against tokens", plots.tokens_plot(runs)),
        _image("Loss against WAN traffic", plots.bytes_plot(runs)),
        _image("Loss against wall time", plots.time_plot(runs)),
        _image("Loss against steps", plots.steps_plot(runs)),
    ]


def _tiles(run: Run) -> str:
    figures = run_figures(run)
    tiles = []
    if figures.diverged:
        tiles.append(("bad", "DIVERGED", "the loss ended above where it began"))
    if figures.eval_loss is not None:
        beside = "on what is held out"
        if figures.baseline_eval_loss:
            percent = 100 * (figures.eval_loss / figures.baseline_eval_loss - 1)
            beside += f", {percent:+.1f} % against data-parallel"
        tiles.append(("", f"{figures.eval_loss:.4f}", f"{figures.loss_unit} {beside}".strip()))
    if figures.ratio is not None:
        tiles.append(("", f"{figures.ratio:,.0f} ×", "fewer bytes than data-parallel"))  # noqa: RUF001
    if figures.digests_equal is not None:
        words = "outer states are equal, bit for bit"
        tiles.append(
            ("" if figures.digests_equal else "bad", "yes" if figures.digests_equal else "NO", words)
        )
    tiles.append(("", f"{max(figures.rounds_committed):,}", f"rounds committed by {figures.islands} islands"))
    boxes = (
        f'<div class="tile {kind}"><b>{html.escape(value)}</b><span>{html.escape(words)}</span></div>'
        for kind, value, words in tiles
    )
    return f'<div class="tiles">{"".join(boxes)}</div>'


def _failures(run: Run) -> str:
    lines = [(island.name, line) for island in run.islands for line in failed(island)]
    if not lines:
        return ""
    rows = "".join(
        f"<tr><td>{html.escape(name)}</td><td>{float(line['time_s']):.1f} s</td>"
        f"<td>fragment {line.get('fragment', 0)}, after outer step {line.get('outer_step', 0)}</td>"
        f"<td>{html.escape(run.why(line))}</td></tr>"
        for name, line in lines[:FAILURES_SHOWN]
    )
    more = f"<p>and {len(lines) - FAILURES_SHOWN} more</p>" if len(lines) > FAILURES_SHOWN else ""
    return (
        f'<details class="card"><summary>{len(lines)} rounds were not committed</summary>'
        f"<table>{rows}</table>{more}</details>"
    )


def _configuration(run: Run) -> str:
    text = json.dumps(run.islands[0].config, indent=2)
    return (
        f'<details class="card"><summary>Configuration of {html.escape(run.islands[0].name)}</summary>'
        f"<pre>{html.escape(text)}</pre></details>"
    )


def _image(words: str, png: bytes) -> str:
    data = base64.b64encode(png).decode("ascii")
    return f'<div class="card"><img alt="{html.escape(words)}" src="data:image/png;base64,{data}"></div>'
