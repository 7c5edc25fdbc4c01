"""Does the page of ``enginesmith compare`` fit a window? Ten rows in a real browser, at a screen's and a phone's width.

    python benchmarks/page.py FOLDER [--browser chromium]

Writes the page and a picture of it at each width into FOLDER, and prints by how many pixels anything is wider than the
window: 0 means that nothing hides behind a scroll bar.
"""

from __future__ import annotations

import argparse
import re
import subprocess
from pathlib import Path

from enginesmith.cli.page.report import page
from enginesmith.convert.job.compare import Comparison, Conditions, Result, Size
from enginesmith.convert.prove.execution import Accuracy
from enginesmith.convert.targets.trtllm.formats import SCHEMES

WIDTHS = (1100, 768, 390)
# fmt: off
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync", "--allow-file-access-from-files", "--hide-scrollbars")
# fmt: on
# Shows the page in a frame of some width and writes how much wider its content is.
FRAME = """<iframe id="f" src="page.html" style="border:0;width:{width}px;height:900px"></iframe><script>
f.onload = () => {{ const d = f.contentDocument.documentElement;
  const widest = Math.max(...[...d.querySelectorAll("*")].map(e => e.getBoundingClientRect().right));
  document.title = "beyond " + Math.max(0, Math.ceil(Math.max(d.scrollWidth, widest) - {width})) }}</script>"""


def ten_rows() -> Comparison:
    results = []
    for place, name in enumerate(sorted(SCHEMES, key=len)[-10:]):
        errors = [0.01 * (layer + 1) * (place + 1) for layer in range(30)]
        accuracy = Accuracy(10220, 12.8 + place * 100, 12.7043, 0.00745 * (place + 1), 0.9591, errors)
        results.append(Result(name, Size(1_234_567_890 + place, 8.25), accuracy))
    conditions = Conditions("0.1.0", "bfloat16", 128, "INT8", "pydoc", 32768, "pydoc-heldout")
    return Comparison("models/Some-Model-With-A-Long-Name-135M-Instruct", results, None, conditions)


def browse(browser: str, *words: str) -> str:
    return subprocess.run([browser, *FLAGS, *words], capture_output=True, text=True, check=True, timeout=120).stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--browser", default="chromium")
    options = parser.parse_args()
    folder = options.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "page.html").write_text(page(ten_rows()))
    for width in WIDTHS:
        (folder / "frame.html").write_text(FRAME.format(width=width))
        shown = browse(options.browser, "--virtual-time-budget=3000", "--dump-dom", (folder / "frame.html").as_uri())
        found = re.search(r"<title>beyond (\d+)</title>", shown)
        picture = folder / f"page-{width}.png"
        browse(
            options.browser, f"--window-size={width},1400", f"--screenshot={picture}", (folder / "page.html").as_uri()
        )
        print(f"{width} px wide: {found[1] if found else '?'} px beyond the window; {picture}")


if __name__ == "__main__":
    main()
