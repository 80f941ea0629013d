"""The published figures of learning: loss and bytes, as Markdown."""

from __future__ import annotations

import json
import re
import statistics
from pathlib import Path
from typing import Any

from codecs_learning import REFERENCE, costs
from lowcomm.bench.learning import read_log
from parts import Part, table

ALONE = "one island alone"
"""What studies call the run of an island with its own share of the tokens."""


def quickstart(path: Path) -> Part:
    """The quickstart beside data-parallel training."""
    figures = json.loads(path.read_text(encoding="utf-8"))
    sent, baseline = max(figures["wan_bytes_sent"]), figures["baseline_eval_loss"]
    gap = f" ({figures['eval_loss'] / baseline - 1:+.1%})" if baseline else ""
    rows = [
        (
            "islands, inner steps, outer steps",
            f"{figures['islands']}, {figures['inner_steps']}, {figures['outer_steps']}",
        ),
        ("tokens, all islands", f"{figures['tokens']:,}"),
        ("loss on held-out text, nats per byte", f"{figures['eval_loss']:.4f}{gap}"),
        ("loss of data-parallel at equal tokens", f"{baseline:.4f}" if baseline else "not run"),
        ("bytes sent per island", f"{sent / 1e6:.1f} MB"),
        ("bytes that data-parallel would have sent", f"{figures['data_parallel_bytes'] / 1e9:.2f} GB"),
        ("times fewer bytes", f"{figures['data_parallel_bytes'] / sent:.0f}"),
        ("outer states equal, bit for bit", "yes" if len(set(figures["digests"])) == 1 else "no"),
        ("wall time", f"{figures['wall_s']:.0f} s"),
    ]
    return Part(
        "The quickstart",
        "What the first command of the front page ends with, and the same training data-parallel.",
        "`lowcomm quickstart --baseline`, 2 cores, one seed",
        table(("quickstart", ""), rows),
    )


def learning(path: Path) -> Part:
    """Islands, data-parallel training and an island alone."""
    return Part(
        "Islands against data-parallel",
        "At equal tokens islands end a few percent from data-parallel training, and far below an island that "
        "trains alone; with AdamW that takes short intervals, so it saves fewer bytes than with Muon.",
        "1M parameters, int8 (`lowcomm bench learning`)",
        _runs(path),
    )


def few_bytes(path: Path) -> Part:
    """Long intervals and two bits."""
    return Part(
        "Thousands of times fewer bytes",
        "Long intervals and two bits together: little is lost while next to nothing is sent.",
        "2-bit pseudo-gradients with error feedback, every 150 steps (`lowcomm bench learning "
        "recipes/studies/few_bytes.toml`)",
        _runs(path),
    )


def sweep(path: Path) -> Part:
    """How an inner optimizer was tuned."""
    name = path.stem.removesuffix("_sweep").replace("adamw", "AdamW").replace("muon", "Muon")
    rows = [(str(line["name"]), f"{line['eval_loss']:.4f}") for line in read_log(path)]
    return Part(
        f"How {name} was tuned",
        "The neighbourhood of what was chosen, for islands and for data-parallel training: where "
        "each is best.",
        "1,000 steps, one seed, outer lr and momentum after the word outer "
        f"(`lowcomm bench learning recipes/studies/{path.stem}.toml`)",
        table(("run", "eval loss"), rows),
    )


def _runs(path: Path) -> str:
    """Each run of a study over its seeds, against the data-parallel run of the same name."""
    by_name: dict[str, list[dict[str, Any]]] = {}
    for line in read_log(path):
        by_name.setdefault(str(line["name"]), []).append(line)
    rows = []
    for name, lines in sorted(by_name.items()):
        losses = {int(line["seed"]): float(line["eval_loss"]) for line in lines}
        optimizer = name.split(",")[0]
        reference = name.replace(name.split(", ")[1], f"data-parallel of {lines[0]['islands']}", 1)
        gaps = [
            losses[int(line["seed"])] / float(line["eval_loss"]) - 1
            for line in by_name.get(reference, [])
            if int(line["seed"]) in losses and lines[0]["kind"] == "islands"
        ]
        rows.append(
            (
                optimizer,
                name.removeprefix(f"{optimizer}, "),
                ", ".join(f"{loss:.4f}" for _, loss in sorted(losses.items())),
                f"{statistics.fmean(losses.values()):.4f}",
                ", ".join(f"{gap:+.1%}" for gap in gaps) or "-",
                f"{int(lines[0]['tokens']):,}",
                *(
                    (str(lines[0]["outer_steps"]), f"{lines[0]['data_parallel_bytes'] / sent:,.0f}")
                    if (sent := statistics.fmean(max(line.get("bytes_sent", [0])) for line in lines))
                    else ("-", "-")
                ),
            )
        )
    headings = (
        "inner",
        "run",
        "eval loss, by seed",
        "mean",
        "against data-parallel, by seed",
        "tokens",
        "outer steps",
        "times fewer bytes",
    )
    return table(headings, rows)


def words(path: Path) -> Part:
    """Models of transformers on tokens."""
    losses: dict[tuple[str, str], dict[int, float]] = {}
    sent: dict[tuple[str, str], str] = {}
    parameters: dict[str, int] = {}
    equal = True
    for line in read_log(path):
        model, run = re.split(r", (?=\d+ islands|data-parallel)", str(line["name"]))
        losses.setdefault((model, run), {})[int(line["seed"])] = float(line["eval_loss"])
        if line["kind"] == "islands":
            sent[model, run] = f"{max(line['bytes_sent']) / 1e6:.0f} MB"
            equal = equal and line["digests_equal"] and not line["rounds_failed"]
        parameters[model] = int(line["parameters"])
    rows = []
    for (model, run), found in sorted(losses.items()):
        reference = losses[model, "data-parallel of 2"]
        gaps = [f"{found[seed] / reference[seed] - 1:+.1%}" for seed in sorted(found) if seed in reference]
        own = run == "data-parallel of 2"
        by_seed = ", ".join(f"{loss:.4f}" for _, loss in sorted(found.items()))
        rows.append(
            (
                model,
                f"{parameters[model]:,}",
                run,
                by_seed,
                "-" if own else ", ".join(gaps),
                sent.get((model, run), "-"),
            )
        )
    headings = (
        "model", "trained parameters", "run", "eval loss, by seed", "against data-parallel",
        "sent by each island",
    )  # fmt: skip
    ends = "All rounds of the islands committed, and all ended with equal digests." if equal else ""
    return Part(
        "Models of transformers on tokens",
        "With AdamW and batches of 4 windows two islands stay behind data-parallel training of 8, by less "
        f"with shorter intervals. {ends}",
        "A BPE of 4,096, held-out loss in nats per token; Llamas train 1,200 steps, the others 600, LoRA on "
        "top of a Llama of 300 steps (`lowcomm bench learning recipes/studies/words.toml`)",
        table(headings, rows),
    )


def short_runs(path: Path) -> Part:
    """Few outer steps, against an island alone."""
    return Part(
        "Runs of few outer steps",
        "With the default outer optimizer, whose momentum warms up, islands end better than one that trains "
        "alone, from 5 outer steps on; with the paper's 0.7 and 0.9 from the start they can end worse.",
        "300 inner steps, three seeds (`lowcomm bench learning recipes/studies/short_runs.toml`)",
        _against_alone(path),
    )


def _against_alone(path: Path) -> str:
    """Each run over its seeds, against an island alone with the same inner optimizer."""
    losses: dict[str, dict[int, float]] = {}
    outer_steps: dict[str, int] = {}
    for line in read_log(path):
        name = str(line["name"])
        losses.setdefault(name, {})[int(line["seed"])] = float(line["eval_loss"])
        outer_steps[name] = 0 if line["kind"] == "alone" else int(line["outer_steps"])
    rows = []
    for name in sorted(losses, key=lambda name: (name.split(", ")[0], outer_steps[name], name)):
        optimizer, run = name.split(", ", 1)
        alone, seeds = losses[f"{optimizer}, {ALONE}"], sorted(losses[name])
        gaps = [f"{losses[name][seed] / alone[seed] - 1:+.1%}" for seed in seeds if run != ALONE]
        rows.append(
            (
                optimizer,
                run,
                ", ".join(f"{losses[name][seed]:.4f}" for seed in seeds),
                ", ".join(gaps) or "-",
            )
        )
    return table(("inner", "run", "eval loss, by seed", "against one alone, by seed"), rows)


def codecs_learning(path: Path) -> Part:
    """Loss by codec."""
    return Part(
        "What compression costs in loss",
        "About a percent either way, down to two bits and to top-k, as long as what compression "
        "leaves out is "
        "kept for the next round (error feedback).",
        "AdamW, four islands, 300 outer steps of 5 (`lowcomm bench learning recipes/studies/codecs.toml`; "
        "[plot](../img/codecs_learning.png))",
        _costs(path),
    )


def streaming(path: Path) -> Part:
    """Loss by overlap."""
    return Part(
        "What overlap costs in loss",
        "Fragments that are merged some steps late cost no more than seeds differ by.",
        "Muon, four islands, 50 outer steps of 30, streaming in 4 fragments (`lowcomm bench learning "
        "recipes/studies/streaming.toml`)",
        _costs(path),
    )


def _costs(path: Path) -> str:
    rows = [
        (
            cost.name,
            ", ".join(f"{loss:.4f}" for _, loss in sorted(cost.losses.items())),
            "-" if cost.name == REFERENCE else ", ".join(f"{gap:+.1%}" for gap in cost.gaps),
            f"{cost.sent_bytes / 1e6:.1f} MB",
        )
        for cost in costs(path)
    ]
    headings = ("exchange", "eval loss, by seed", "against fp32, by seed", "sent by each island")
    return table(headings, rows)
