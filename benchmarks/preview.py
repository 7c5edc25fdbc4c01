"""A preview server held against generate, and soaked.

    python benchmarks/preview.py CHECKPOINT HF_DIR [MINUTES]

Makes a preview and starts it (a tritonserver is needed, see docs/generating.md). First 200 prompts: what the server
answers alone and whole, and streamed in a crowd, beside what generate says. Then for MINUTES (10) 16 clients stream one
answer after the other: errors, memory of the model's process, and how evenly the clients were served.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))
from enginesmith import GenerateOptions
from enginesmith import generate as said_by
from enginesmith.build.triton.generate import generate
from enginesmith.build.triton.options import TritonOptions
from enginesmith.convert.sources.documents import built_in
from tests.test_server_preview import command, processes, resident
from tests.triton_asking import ask, stream, texts_of
from tests.tritonserver import Running, serving

PROMPTS, TOKENS, CLIENTS, BLS = 200, 16, 16, "tensorrt_llm_bls"


def prompts() -> list[str]:
    """Beginnings of lines of Python's documentation, of 1 to 20 words."""
    lines = [line.split() for line in built_in("pydoc-heldout").splitlines() if len(line.split()) >= 20]
    lines += [line.split() for line in built_in("pydoc").splitlines() if len(line.split()) >= 12]
    return [" ".join(words[: 1 + n % 20]) for n, words in enumerate(lines[:PROMPTS])]


def request(prompt: str, tokens: int, streaming: bool) -> dict[str, np.ndarray]:
    return {
        "text_input": np.array([[prompt.encode()]], np.object_),
        "max_tokens": np.array([[tokens]], np.int32),
        "stream": np.array([[streaming]]),
    }


def same(server: Running, checkpoint: str, model: str, asked: Sequence[str]) -> None:
    """Texts of generate, of the server alone, and of a crowd of streams."""
    wanted = [a.text for a in said_by(checkpoint, asked, GenerateOptions(max_tokens=TOKENS), model).answers]
    alone = ["".join(texts_of(ask(server.grpc, BLS, request(prompt, TOKENS, False)))) for prompt in asked]
    pieces: dict[str, list] = {str(number): [] for number in range(len(asked))}
    left = len(asked)
    with stream(server.grpc) as opened:
        for number, prompt in enumerate(asked):
            opened.send(BLS, request(prompt, TOKENS, True), str(number))
        for name, response, last in opened.pieces():
            pieces[name] += [response] if response else []
            left -= last
            if not left:
                break
    crowd = ["".join(texts_of(pieces[str(number)])) for number in range(len(asked))]
    for what, got in (("alone", alone), ("streamed in a crowd", crowd)):
        equal = sum(a == b for a, b in zip(wanted, got, strict=True))
        print(f"{what}: {equal} of {len(asked)} as generate")
        for a, b in [(a, b) for a, b in zip(wanted, got, strict=True) if a != b][:5]:
            print(f"  {a!r}\n  {b!r}")


def soak(server: Running, asked: Sequence[str], minutes: float, pid: int) -> None:
    """Clients that stream one answer after the other until time is over."""
    until, answers, errors = time.monotonic() + 60 * minutes, [0] * CLIENTS, list[str]()
    seconds: list[list[float]] = [[] for _ in range(CLIENTS)]

    def client(number: int) -> None:
        while time.monotonic() < until:
            started = time.monotonic()
            prompt = asked[(number * 37 + answers[number] * 11) % len(asked)]
            told = ask(server.grpc, BLS, request(prompt, 24, True))
            errors.extend(one for one in told if isinstance(one, str))
            answers[number] += 1
            seconds[number].append(time.monotonic() - started)

    threads = [threading.Thread(target=client, args=(number,)) for number in range(CLIENTS)]
    for thread in threads:
        thread.start()
    sizes = []
    while any(thread.is_alive() for thread in threads):
        sizes.append(resident(pid) / 2**20)
        time.sleep(min(30, max(1, 60 * minutes / 20)))
    for thread in threads:
        thread.join()
    print(f"{minutes:g} minutes, {CLIENTS} streams: {sum(answers)} answers, {len(errors)} errors {errors[:2]}")
    print(f"answers a client: {min(answers)} to {max(answers)}")
    each = [statistics.median(times) for times in seconds if times]
    print(f"median seconds an answer, by client: {min(each):.2f} to {max(each):.2f}")
    print("resident MiB of the model over time:", " ".join(f"{size:.0f}" for size in sizes))


def main(checkpoint: str, model: str, minutes: str = "10") -> None:
    with tempfile.TemporaryDirectory() as folder:
        few = {"preprocessing_instances": 1, "postprocessing_instances": 1, "bls_instances": CLIENTS}
        options = TritonOptions(checkpoint, model, f"{folder}/repository", True, decoupled=True, **few)
        with serving(generate(options)) as server:
            (pid,) = [pid for pid in processes() if f"{folder}/repository/tensorrt_llm/" in command(pid)]
            asked = prompts()
            same(server, checkpoint, model, asked)
            soak(server, asked, float(minutes), pid)


if __name__ == "__main__":
    main(*sys.argv[1:])
