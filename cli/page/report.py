"""A comparison as one HTML page that needs no other file, no script and no network."""

from __future__ import annotations

import math
from html import escape
from typing import TYPE_CHECKING

from .svg import Axis, chart, dots, legend, line

if TYPE_CHECKING:
    from ...convert.job.compare import Comparison, Conditions, Outliers, Result

# A layer without error still has its place on a logarithmic axis.
SMALLEST_ERROR = 1e-4

STYLE = """
:root { color-scheme: light dark; --ink: #1c1e21; --faint: #63676e; --rule: #dfe2e6; --paper: #ffffff;
  --s0: #0b62c4; --s1: #c2410c; --s2: #15803d; --s3: #9333ea;
  --s4: #713f12; --s5: #0e7490; --s6: #be185d; --s7: #4d5562 }
@media (prefers-color-scheme: dark) { :root { --ink: #e8eaed; --faint: #9aa0a8; --rule: #33373d; --paper: #16181b;
  --s0: #6cb0ff; --s1: #ff9166; --s2: #5fd38a; --s3: #c79bff;
  --s4: #f2b84b; --s5: #55cfe6; --s6: #ff85b8; --s7: #b4bac4 } }
body { max-width: 60rem; margin: 2.5rem auto; padding: 0 1rem; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, sans-serif }
h1 { font-size: 1.45rem; overflow-wrap: anywhere } h2 { font-size: 1.1rem; margin-top: 2.2rem }
p, caption { color: var(--faint) }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: 0.87rem }
th, td { text-align: right; padding: 0.3rem 0.5rem; border-bottom: 1px solid var(--rule); white-space: nowrap }
th:first-child, td:first-child { text-align: left; white-space: normal }
@media (max-width: 760px) { tr:first-child { display: none }
  tr { display: grid; grid-template-columns: repeat(3, 1fr); border-bottom: 1px solid var(--rule); padding: 0.4rem 0 }
  td { border: 0; padding: 0.1rem 0; text-align: left } td:first-child { grid-column: 1 / -1; font-weight: 600 }
  td[data-of]::before { content: attr(data-of); display: block; color: var(--faint); font-size: 0.75rem } }
svg { display: block; width: 100%; height: auto } .swatch { display: inline-block; width: 22px; margin-right: 4px }
.legend { list-style: none; padding: 0; display: flex; flex-wrap: wrap; gap: 0.2rem 1.2rem; font-size: 0.85rem }
.grid { stroke: var(--rule) } .tick, .axis { fill: var(--faint); font-size: 12px }
.name { fill: var(--ink); font-size: 12px }
.line { fill: none; stroke-width: 2; stroke-linejoin: round }
"""
STYLE += "".join(f".s{i} {{ stroke: var(--s{i}) }} .dot.s{i} {{ fill: var(--s{i}) }}\n" for i in range(8))


def page(comparison: Comparison) -> str:
    """The whole page, well-formed as XML too."""
    numbers = {result.name: number for number, result in enumerate(comparison.results)}
    sections = [figures_table(comparison), sizes(comparison.results, numbers), errors(comparison.results, numbers)]
    if comparison.outliers is not None:
        sections.append(outliers(comparison.outliers, numbers))
    title = f"Quantizations of {escape(comparison.model)}"
    return (
        '<!DOCTYPE html>\n<html xmlns="http://www.w3.org/1999/xhtml" lang="en">\n<head>\n<meta charset="utf-8"/>\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"/>\n<title>{title}</title>\n'
        f"<style>{STYLE}</style>\n</head>\n<body>\n<h1>{title}</h1>\n" + "\n".join(sections) + "\n</body>\n</html>\n"
    )


def section(title: str, text: str, *parts: str) -> str:
    return f"<section><h2>{escape(title)}</h2>\n<p>{escape(text)}</p>\n" + "\n".join(parts) + "</section>"


def figures_table(comparison: Comparison) -> str:
    """Every number of the command's table."""
    first = comparison.results[0].accuracy
    head = ("algorithm", "MB", "bits a weight", "perplexity", "increase", "mean KL (nats)", "top-1")
    rows = ["".join(f"<th>{name}</th>" for name in head)]
    for result in comparison.results:
        name = escape(result.name).replace("_", "_<wbr/>")
        named = zip(head[1:], cells(result), strict=True)
        rows.append(f"<td>{name}</td>" + "".join(f'<td data-of="{of}">{cell}</td>' for of, cell in named))
    body = "\n".join(f"<tr>{row}</tr>" for row in rows)
    conditions = comparison.conditions
    text = (
        f"{made_with(conditions)} Measured on {first.tokens:,} held-out tokens ({conditions.text}), where the float32 "
        f"source has perplexity {first.reference_perplexity:.4f}. KL is the distance of the predictions from the "
        "source's; top-1 is how often both find the same next token most likely. MB include the embedding and lm_head, "
        "which stay in 16 bits; bits a weight do not."
    )
    return f"<section><p>{escape(text)}</p>\n<table>\n{body}\n</table></section>"


def cells(result: Result) -> tuple[str, ...]:
    """Size and accuracy of one algorithm as tables show them: MB to top-1."""
    size, accuracy = result.size, result.accuracy
    return (
        f"{size.bytes / 1e6:,.1f}",
        f"{size.bits:.2f}",
        f"{accuracy.perplexity:.4f}",
        f"{accuracy.increase_percent:+.2f} %",
        f"{accuracy.kl:.5f}",
        f"{100 * accuracy.top1:.2f} %",
    )


def made_with(by: Conditions) -> str:
    """One sentence: what every algorithm was made with."""
    read = "nothing was calibrated"
    if by.calibration is not None:
        read = f"calibrated on {by.calibration_tokens:,} tokens ({by.calibration})"
    return (
        f"enginesmith {by.version}, engine dtype {by.dtype}, KV cache {by.kv_cache or by.dtype}, groups of "
        f"{by.group_size} unless an algorithm says otherwise, {read}."
    )


def sizes(results: list[Result], numbers: dict[str, int]) -> str:
    """Size against perplexity, one dot an algorithm."""
    places = {result.name: (result.size.bytes / 1e6, result.accuracy.perplexity) for result in results}
    places = {name: at for name, at in places.items() if math.isfinite(at[1])}
    x = Axis.over("size of the checkpoint (MB)", [at[0] for at in places.values()], False, room=0.08)
    y = Axis.over("perplexity", [at[1] for at in places.values()], True, room=0.12)
    drawn = chart("Size against perplexity", x, y, dots(places, numbers, x, y))
    return section("Size against perplexity", "Lower is better, and so is further left.", drawn)


def errors(results: list[Result], numbers: dict[str, int]) -> str:
    """The error after each layer, one line an algorithm."""
    floored = {r.name: [100 * max(error, SMALLEST_ERROR) for error in r.accuracy.layer_errors] for r in results}
    every = [error for of in floored.values() for error in of]
    x = Axis.over("layer", list(range(len(results[0].accuracy.layer_errors))), False, whole=True)
    y = Axis.over("error (%)", every, True, logarithmic=True)
    lines = [line(name, numbers[name], list(enumerate(of)), x, y) for name, of in floored.items()]
    drawn = chart("Error after each layer", x, y, lines)
    text = "Distance of the hidden states from the source's, over the norm of the source's."
    return section("Error after each layer", text, drawn, legend(numbers))


def outliers(found: Outliers, numbers: dict[str, int]) -> str:
    """The largest |x| of each channel, channels from widest to narrowest, before and after scaling."""
    before = "before" if not found.after else "before, and where nothing is scaled"
    curves = {before: found.before, **found.after}
    colours = {name: numbers.get(name, len(numbers)) for name in curves}
    x = Axis.over("channels, from widest to narrowest", [1, len(found.before)], False)
    y = Axis.over("largest |x|", [value for of in curves.values() for value in of], True, logarithmic=True)
    lines = []
    for name, of in curves.items():
        ranked = sorted((value for value in of if value > 0), reverse=True)
        lines.append(line(name, colours[name], list(enumerate(ranked, start=1)), x, y))
    title = f"Activation outliers: layer {found.layer}, input of {found.group}"
    unscaled = ", ".join(name for name in numbers if name not in found.after)
    text = (
        "On the calibration tokens: the input whose widest channel stands out most from the median one. A flat curve "
        "is easy to quantize." + (f" It is left as it is by {unscaled}." if unscaled else "")
    )
    return section(title, text, chart(title, x, y, lines), legend(colours))
