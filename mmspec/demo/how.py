"""The tab that tells in half a minute what mmspec does: one round, drawn and moving."""

import gradio as gr

from mmspec.demo.parts import TERMS
from mmspec.demo.stage import Stage

# Seconds of the drawing until it begins again. Times below are hundredths of that: the draft is there by 22, each pass
# of the model takes 20.
SECONDS, CHECK, PASS = 12, 22, 20

# What is written already, the draft, how many of it are right, and what the model writes instead of the next one.
WRITTEN, DRAFT, KEPT, OWN = ["The", "cat"], ["sat", "on", "a", "mat"], 2, "the"

# The width of a token and the distance to the next, the height of a token, and where the two lines of tokens are.
WIDTH, STEP, HEIGHT, UPPER, LOWER = 62, 68, 36, 30, 166

TOLD = (
    "With a draft, four guessed words are checked in one pass of the model; two are kept, and the model adds one. "
    "Without drafts the same three words take three passes."
)

# Everything is drawn as it is at the end, and animations are what comes before that: so who wants no motion sees the
# end.
STYLE = f"""
.round svg {{ width: 100%; max-width: 640px; height: auto; display: block; }}
.round text {{ fill: var(--body-text-color, #222); font: 600 16px system-ui, sans-serif; }}
.round .small {{ font-weight: 400; font-size: 14px; text-anchor: end; }}
.round .token text {{ text-anchor: middle; }}
.round rect {{ fill: none; stroke: var(--body-text-color-subdued, #777); stroke-width: 1.5; }}
.round .kept rect {{ fill: #1ea05033; stroke: #1ea050; stroke-width: 2.5; }}
.round .own rect {{ fill: #e98c1e33; stroke: #e98c1e; stroke-width: 2.5; }}
.round .draft rect {{ stroke-dasharray: 5 4; }}
.round path {{ stroke: var(--body-text-color, #222); stroke-width: 2; }}
.round .pass {{ fill: #6366f1; stroke: none; opacity: 0; }}
.round .gone {{ opacity: 0; }}
.round ol {{ list-style: none; padding: 0; margin: .5rem 0; }}
.round li {{ border-left: 4px solid #6366f1; padding: .15rem .75rem; margin: .4rem 0; }}
.round input {{ border: 1.5px solid currentColor !important; }}
.round label {{ margin-top: .75rem; display: inline-flex; gap: .5rem; align-items: center; cursor: pointer; }}
@media (prefers-reduced-motion: reduce) {{ .round input {{ border: 1.5px solid currentColor !important; }}
.round label {{ margin-top: .75rem; display: none !important; }} }}
@media (prefers-reduced-motion: no-preference) {{
  .round [class*="moves"] {{ animation: {SECONDS}s linear infinite both; }}
  .round:has(input:checked) [class*="moves"] {{ animation-play-state: paused; }}
}}
"""

TEXT = """
<label><input type="checkbox"> Hold the drawing</label>
<ol>
<li><b>Draft.</b> Something small and fast guesses the next tokens (dashed).</li>
<li><b>Check.</b> One pass of the model reads all guesses at once (the moving bar), in little more time than it would
need for one.</li>
<li><b>Keep.</b> Guesses are kept while they are what the model itself would have written (green). At the first that is
not, the model writes its own (orange), the rest is thrown away, and the next round begins.</li>
</ol>
<p>So nothing is written that the model would not have written: <b>the same seed gives the same output, sooner</b>. How
much sooner depends on how many guesses are right; the tab <i>Race</i> shows it side by side.</p>
"""


def animation(name: str, frames: str) -> str:
    """Key frames, played by elements of the class `moves-NAME` unless no motion is wanted."""
    return (
        f"@keyframes round-{name} {{ {frames} }}\n"
        f"@media (prefers-reduced-motion: no-preference) {{ "
        f".round .moves-{name} {{ animation-name: round-{name} !important; }} }}\n"
    )


def appearing(at: int, name: str, until: int = 100) -> str:
    """Something that is there from `at` on, until `until`."""
    end = "" if until == 100 else f"{until}% {{ opacity: 1 }} {until + 2}%,"
    return animation(
        name, f"0%, {at}% {{ opacity: 0 }} {at + 2}% {{ opacity: 1 }} {end} 100% {{ opacity: {int(not end)} }}"
    )


def sweeping(start: int, slots: int, name: str) -> str:
    """A pass of the model that begins at `start` and moves over some tokens."""
    there, way = "opacity: .4;", f"transform: translateX({STEP * slots - 12}px)"
    end = start + PASS
    return animation(
        name,
        f"0%, {start - 1}% {{ opacity: 0; transform: none }} {start}% {{ {there} transform: none }} "
        f"{end - 1}% {{ {there} {way} }} {end}%, 100% {{ opacity: 0; {way} }}",
    )


def token(word: str, slot: int, top: int, classes: str, more: str = "") -> str:
    """A token of a line."""
    left = 6 + STEP * slot
    return (
        f'<g class="token {classes}"><rect x="{left}" y="{top}" width="{WIDTH}" height="{HEIGHT}" rx="6"/>'
        f'<text x="{left + WIDTH // 2}" y="{top + 24}">{word}</text>{more}</g>'
    )


def bar(slot: int, top: int, name: str) -> str:
    """The bar that shows a pass of the model, where it begins."""
    left, above, height = STEP * slot + 2, top - 6, HEIGHT + 12
    return f'<rect class="pass moves-{name}" x="{left}" y="{above}" width="12" height="{height}" rx="4"/>'


def drawing() -> str:
    """The round as HTML: above a draft that one pass checks, below one pass for each token."""
    start, over = len(WRITTEN), CHECK + PASS
    style, shapes = [STYLE], []
    for slot, word in enumerate(WRITTEN):
        shapes += [token(word, slot, UPPER, ""), token(word, slot, LOWER, "")]
    for i, word in enumerate(DRAFT):
        slot, at = start + i, 4 + 4 * i
        if i < KEPT:
            style.append(appearing(at, f"guess-{i}", until=over))
            shapes.append(token(word, slot, UPPER, f"draft gone moves-guess-{i}"))
        else:  # what is thrown away moves down, out of the line, and is struck out
            style.append(appearing(at, f"guess-{i}"))
            left, middle = 8 + STEP * slot, UPPER + 46 + HEIGHT // 2
            strike = f'<path class="moves-after" d="M{left} {middle}h{WIDTH - 4}"/>'
            shapes.append(
                f'<g class="moves-drop">{token(word, slot, UPPER + 46, f"draft moves-guess-{i}", strike)}</g>'
            )
    for i, word in enumerate([*DRAFT[:KEPT], OWN]):
        slot, began = start + i, CHECK + PASS * i
        style += [appearing(began + PASS, f"plain-{i}"), sweeping(began, 1, f"pass-{i}")]
        shapes.append(token(word, slot, UPPER, f"{'kept' if i < KEPT else 'own'} moves-after"))
        shapes += [token(word, slot, LOWER, f"own moves-plain-{i}"), bar(slot, LOWER, f"pass-{i}")]
    style += [
        animation("drop", f"0%, {over}% {{ transform: translateY(-46px) }} {over + 8}%, 100% {{ transform: none }}"),
        appearing(over, "after"),
        appearing(CHECK + 3 * PASS, "end"),
        sweeping(CHECK, len(DRAFT), "pass"),
    ]
    return f"""<style>{"".join(style)}</style>
<div class="round">
<svg viewBox="0 0 416 212" role="img" aria-label="{TOLD}">
<text x="6" y="18">With a draft</text>
<text class="small moves-after" x="408" y="18">3 words after 1 pass</text>
<text x="6" y="{LOWER - 12}">Plain decoding</text>
<text class="small moves-end" x="408" y="{LOWER - 12}">3 words after 3 passes</text>
{"".join(shapes)}
{bar(start, UPPER, "pass")}
</svg>
{TEXT}</div>"""


def tab(stage: Stage) -> None:
    """Build the tab."""
    gr.Markdown("### What mmspec does, in half a minute")
    gr.HTML(drawing(), label="A round, drawn")
    words = "\n".join(f"- **{term}**: {meaning}." for term, meaning in TERMS.items())
    gr.Markdown(f"### The words on these pages\n{words}")
