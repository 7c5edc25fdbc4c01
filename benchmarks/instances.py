"""What an instance of a repository's Python model holds for its tokenizer, and how long it takes to start.

    python benchmarks/instances.py TOKENIZER_FOLDER

Each way is a process of its own, that does what a model's initialize does and then tokenizes and detokenizes a text:
with the tokenizers library, as models do, and with transformers, as they did. Resident memory, the part of it that is
not shared with other processes (PSS), and seconds from the process's start.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

MODELS = Path(__file__).parent.parent / "build" / "triton" / "models"
WAYS = {
    "tokenizers": "from loading import load_tokenizer; tokenizer = load_tokenizer(folder)",
    "tokenizers, --chat": "import chat; from loading import load_tokenizer; tokenizer = load_tokenizer(folder)",
    "transformers": "from transformers import AutoTokenizer; tokenizer = AutoTokenizer.from_pretrained(folder)",
}
PROGRAM = """
import json, sys
models, folder = sys.argv[1:]
sys.path.insert(0, models)
import numpy
{way}
ids = tokenizer("The capital of France is")["input_ids"]
tokenizer.decode(ids)
sizes = dict(line.split(":") for line in open("/proc/self/smaps_rollup").read().splitlines()[1:])
print(*(int(sizes[name].split()[0]) / 1024 for name in ("Rss", "Pss")))
"""


def main() -> None:
    [folder] = sys.argv[1:]
    for name, way in WAYS.items():
        command, best = [sys.executable, "-c", PROGRAM.format(way=way), str(MODELS), folder], float("inf")
        for _ in range(3):
            begin = time.perf_counter()
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            best = min(best, time.perf_counter() - begin)
        resident, own = map(float, done.stdout.split())
        print(f"{name:20} {resident:6.0f} MB resident  {own:6.0f} MB PSS  {best:5.2f} s", flush=True)


if __name__ == "__main__":
    main()
