"""What the stand-in for Triton's Python backend does, and what the real one does: the same."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as grpc

from enginesmith.build.triton.launch import launch_script

from .triton_asking import stream, tensors
from .triton_backend import Brain16, Server, echo
from .tritonserver import FINDER, needs_server, serving

LAST = "after the final flag"
TYPES = {
    "BOOL": np.array([[True, False]]),
    "INT32": np.array([[1, -2]], np.int32),
    "INT64": np.array([[2**40]], np.int64),
    "UINT64": np.array([[2**63]], np.uint64),
    "FP16": np.array([[0.5]], np.float16),
    "FP32": np.array([[0.25]], np.float32),
    "STRING": np.array([["\u00e9".encode(), b""]], np.object_),
}


def tensor(name: str, kind: str, more: str = "") -> str:
    return f'{{ name: "{name}" data_type: TYPE_{kind} dims: [ -1 ] {more} }}'


BRAIN = np.array([[1, 2]], np.float32).view(np.uint16)[:, 1::2]  # the upper halves are bfloat16
PROBED = [*(tensor(name, name) for name in TYPES), tensor("BRAIN", "BF16"), tensor("ABSENT", "INT32", "optional: true")]
TWICE, NUMBERS = tensor("TWICE", "INT32"), tensor("NUMBERS", "INT32")
TOLD = f"{tensor('OUTCOME', 'STRING')}, {tensor('BRAIN_OUT', 'BF16')}"
DECOUPLED = "model_transaction_policy { decoupled: true }"
CONFIGS = {
    "probe": f"{DECOUPLED} input [{', '.join(PROBED)}] output [{TOLD}]",
    "once": f"input [{NUMBERS}] output [{TWICE}, {tensor('TEXT', 'STRING')}]",
    "many": f"{DECOUPLED} input [{NUMBERS}] output [{TWICE}]",
}


def repository(folder: Path) -> Path:
    """Three models, started as generated ones are."""
    for name, fields in CONFIGS.items():
        version = folder / name / "1"
        version.mkdir(parents=True)
        shutil.copyfile(Path(__file__).parent / "backend_probe.py", version / "model.py")
        usual = f'name: "{name}" backend: "python" max_batch_size: 8 instance_group [ {{ count: 1 kind: KIND_CPU }} ]'
        (version.parent / "config.pbtxt").write_text(f"{usual} {fields}\n")
    (folder / "launch.sh").write_text(launch_script(1, "1.2.1"))
    shutil.copyfile(FINDER, folder / "local_server.py")
    return folder


def asked_for_real(folder: Path) -> tuple[dict[str, Any], bytes, str]:
    """The outcomes in the server, the bytes of the bfloat16 that came back, and the server's log."""
    brain = grpc.InferInput("BRAIN", [1, 2], "BF16")
    brain._raw_content = BRAIN.tobytes()  # the client's own way needs another package
    with serving(folder) as server, stream(server.grpc) as opened:
        opened.client.async_stream_infer("probe", [*tensors(TYPES), brain])
        result = opened.results.get(timeout=30)
        assert not isinstance(result, Exception), result
        outcomes = json.loads(result.as_numpy("OUTCOME").item())
        until = time.monotonic() + 20  # what the model prints after its response
        while LAST not in server.said() and time.monotonic() < until:
            time.sleep(0.05)
        return outcomes, result.get_response().raw_output_contents[1], server.said()


def asked_of_the_stand_in(folder: Path) -> dict[str, Any]:
    inputs = {**TYPES, "BRAIN": BRAIN.view(Brain16)}
    [response] = Server(folder, echo).call("probe", inputs)
    outcomes: dict[str, Any] = json.loads(response["OUTCOME"].item())
    return outcomes


def test_the_stand_in_does_what_the_real_backend_does(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    needs_server()
    folder = repository(tmp_path / "repository")
    real, brain, log = asked_for_real(folder)
    capfd.readouterr()
    ours = asked_of_the_stand_in(folder)
    assert {name: outcome for name, outcome in real.items() if outcome != ours[name]} == {}
    assert ours.keys() == real.keys()
    assert brain == BRAIN.tobytes()
    after = "after the final flag: ['raised', 'TritonModelException']"
    assert after in log
    assert after in capfd.readouterr().err
