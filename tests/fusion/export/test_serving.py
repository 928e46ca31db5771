"""`transformers serve` on a native export, asked by an OpenAI client over loopback."""

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.fusion.export.conftest import configure, fused_of
from triune.fusion.export.source import Options
from triune.fusion.opening import open_fused
from triune.models.loading import load_base
from triune.pipeline.exporting import export

CHAT = "{% for message in messages %}{{ message.content }}{% endfor %}"
N_TOKENS = 24


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def serving(folder: Path, log: Path) -> Iterator[str]:
    """The server's address, once it answers; the log is shown where it does not."""
    port = free_port()
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", str(folder)]
    command += ["--host", "127.0.0.1", "--port", str(port), "--device", "cpu", "--dtype", "float32"]
    with log.open("w") as file:
        server = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env={**os.environ})
    try:
        address = f"http://127.0.0.1:{port}"
        for _ in range(240):
            try:
                with urllib.request.urlopen(f"{address}/health", timeout=1):
                    break
            except OSError:
                assert server.poll() is None, log.read_text()
                time.sleep(0.5)
        else:
            pytest.fail(log.read_text())
        yield address
    finally:
        server.terminate()
        server.wait(30)


@pytest.mark.slow
@pytest.mark.parametrize("calibration", [{}, {"expert_importance": [0.1, 0.2, 0.7]}], ids=["mixtral", "gpt-oss"])
def test_an_openai_client_gets_the_fused_models_answer(
    shared: Path, tmp_path: Path, calibration: dict[str, Any]
) -> None:
    openai = pytest.importorskip("openai", reason="the extra 'serve' is not installed")
    pytest.importorskip("uvicorn", reason="the extra 'serve' is not installed")
    base, tokenizer = load_base(shared / "models" / "stories260K-hf")
    tokenizer.chat_template = CHAT
    fused_of(base).save_pretrained(tmp_path / "fused")
    configure(tmp_path / "fused", **calibration)
    tokenizer.save_pretrained(tmp_path / "fused")
    out = export(tmp_path / "fused", tmp_path / "native", "native", Options())

    question = [{"role": "user", "content": "Once upon a time there was"}]
    model, tokenizer = open_fused(tmp_path / "fused")
    ids = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt")["input_ids"]
    mask = torch.ones_like(ids)
    written = model.generate(ids, attention_mask=mask, max_new_tokens=N_TOKENS, do_sample=False, pad_token_id=0)
    wanted = tokenizer.decode(written[0, ids.shape[1] :], skip_special_tokens=True)
    assert len(set(wanted)) > 5

    with serving(out, tmp_path / "log") as address:
        client = openai.OpenAI(base_url=f"{address}/v1", api_key="none", timeout=120, max_retries=0)
        with client:
            answer = client.chat.completions.create(
                model=str(out), messages=question, max_tokens=N_TOKENS, temperature=0, seed=0
            )
    assert answer.choices[0].message.content == wanted, (tmp_path / "log").read_text()
    assert answer.usage.completion_tokens == N_TOKENS
