"""`headrace demo` as its users start it: a process, its output, signals and exit codes."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO

import pytest
from magika import Magika

from headrace.compose import demo_magika

ROOT = Path(__file__).parents[2]
DEMO = [sys.executable, "-m", "headrace", "demo"]
LIMIT_S = 60
ASKED = re.compile(r"^ ?(\S+) +(\S+)( \?)? +(\d\.\d{3}) +\d+\.\d\d +\d+\.\d\d *$", re.MULTILINE)


def environment(**more: str) -> dict[str, str]:
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("HEADRACE_", "COV_")) and name not in {"FORCE_COLOR", "PYTHONPATH"}
    }
    return {**kept, "COLUMNS": "200", **more}


def demo(
    *arguments: str | Path, folder: Path = ROOT, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*DEMO, *map(str, arguments)],
        cwd=folder,
        env=env or environment(),
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )


def test_the_demo_shows_what_magika_says_about_this_repository() -> None:
    ended = demo()

    assert ended.returncode == 0, ended.stderr + ended.stdout
    assert ended.stderr == ""
    rows = {name: label for name, label, *_ in ASKED.findall(ended.stdout)}
    assert len(rows) >= 8
    original = Magika()
    assert rows == {
        name: str(original.identify_path(ROOT / name).prediction.dl.label) for name in rows
    }
    assert len(set(rows.values())) >= 5
    assert "JSON and binary answers agree" in ended.stdout
    count = 2.0 * len(rows)
    labels = 'model="magika",version="1"'
    requests = 'headrace_requests_total{model="magika",outcome="ok",version="1"}'
    assert f"  {requests} {count}\n" in ended.stdout
    assert f"  headrace_batch_rows_sum{{{labels}}} {count}\n" in ended.stdout
    for answer in ("/livez             200", "/readyz            200", "/v2/health/ready   200"):
        assert f"  {answer}  {{" in ended.stdout
    assert "  /v2/models/magika  200  onnxruntime_onnx, version 1: bytes INT32" in ended.stdout
    assert "  /v2/models/magika  401  without the token\n" in ended.stdout


def test_the_files_that_are_named_are_shown_in_their_order(tmp_path: Path) -> None:
    (tmp_path / "b [red].py").write_bytes(b"import os\n\nprint(os.getcwd())\n" * 9)
    (tmp_path / "few.bin").write_bytes(b"\xff\xfe")
    (tmp_path / "a.json").write_bytes(b'{"versions": [1, 2], "ready": true, "name": "bert"}')
    (tmp_path / "none.txt").touch()
    names = ["b [red].py", "few.bin", "a.json", "none.txt"]

    ended = demo(*names, folder=tmp_path)

    assert ended.returncode == 0, ended.stderr + ended.stdout
    shown = [line for line in ended.stdout.splitlines() if line.strip().startswith(tuple(names))]
    assert [re.split(r"  +", line.strip())[:3][::2] for line in shown][1::2] == [
        ["few.bin", "by rule"],
        ["none.txt", "by rule"],
    ]
    assert [re.split(r"  +", line.strip())[:2] for line in shown] == [
        ["b [red].py", "python"],
        ["few.bin", "unknown"],
        ["a.json", "json"],
        ["none.txt", "empty"],
    ]


def test_in_an_empty_folder_the_demo_asks_about_files_of_python(tmp_path: Path) -> None:
    ended = demo(folder=tmp_path)

    assert ended.returncode == 0, ended.stderr + ended.stdout
    assert "these files are from " in ended.stdout
    assert ASKED.search(ended.stdout)


def test_the_name_of_a_file_cannot_steer_the_terminal(tmp_path: Path) -> None:
    name = "a\x1b[2J\nb\udcff.py"
    (tmp_path / name).write_bytes(b"import os\n\nprint(os.getcwd())\n" * 9)

    ended = demo(folder=tmp_path)

    assert ended.returncode == 0, ended.stderr + ended.stdout
    assert r"a\u001b[2J\nb\udcff.py" in ended.stdout
    assert "\x1b" not in ended.stdout


@pytest.fixture
def kept(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [*DEMO, "--keep"],
        cwd=ROOT,
        env=environment(TMPDIR=str(tmp_path)),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def read_until(start: str, stream: IO[str] | None) -> str:
    """The output up to a line that starts so; the test's time limit ends the wait."""
    assert stream is not None
    read = ""
    for line in stream:
        read += line
        if line.startswith(start):
            return read
    pytest.fail(f"ended before a line with {start!r}:\n{read}")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_kept_demo_answers_the_curl_that_it_prints_until_a_signal(
    kept: subprocess.Popen[str], tmp_path: Path, number: signal.Signals
) -> None:
    output = read_until("Stop with Ctrl-C", kept.stdout)
    command = output[output.index("\ncurl ") : output.index("\nStop with")].strip()

    with_status = f"{command} -w '\\n%{{http_code}}'"
    curl = subprocess.run(
        ["bash", "-c", with_status], capture_output=True, text=True, timeout=LIMIT_S, check=True
    )

    body, _, status = curl.stdout.rpartition("\n")
    assert status == "200"
    (classes,) = json.loads(body)["outputs"]
    assert classes["shape"] == [1, 3]
    asked_file = re.search(r"^The three likeliest types of (.*):$", output, re.MULTILINE)
    assert asked_file
    expected = Magika().identify_path(ROOT / asked_file[1]).prediction.dl.label
    assert classes["data"][0].endswith(f":{expected}")
    assert f"kill {kept.pid}\n" in output

    without_token = re.sub(r"  -H 'Authorization: .*\n", "", with_status)
    refused = subprocess.run(
        ["bash", "-c", without_token], capture_output=True, text=True, timeout=LIMIT_S, check=True
    )
    assert refused.stdout.endswith("\n401")

    kept.send_signal(number)
    _, errors = kept.communicate(timeout=LIMIT_S)
    assert (kept.returncode, errors) == (0, "")
    assert list(tmp_path.glob("headrace-*")) == []


def test_the_urls_that_a_kept_demo_prints_answer(kept: subprocess.Popen[str]) -> None:
    output = read_until("Stop with Ctrl-C", kept.stdout)
    urls = dict(re.findall(r"^(metadata|metrics|health) +GET +(http://\S+)$", output, re.MULTILINE))
    token = re.search(r"^token +(\S+)$", output, re.MULTILINE)
    assert token

    for name in ("metadata", "metrics", "health"):
        curl = ["curl", "-sSf", "--noproxy", "*", "-H", f"X-API-Key: {token[1]}", urls[name]]
        assert subprocess.run(curl, capture_output=True, timeout=LIMIT_S, check=True).stdout


def test_a_port_that_is_taken_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ended = demo("--http-port", str(port), env=environment(TMPDIR=str(tmp_path)))

    assert ended.returncode == 2
    assert ended.stderr == f"headrace: cannot listen on 127.0.0.1:{port}: Address already in use\n"
    assert list(tmp_path.glob("headrace-*")) == []


def test_without_the_model_the_demo_says_how_to_install_it(tmp_path: Path) -> None:
    (tmp_path / "magika").mkdir()
    (tmp_path / "magika" / "__init__.py").touch()

    ended = demo(env=environment(PYTHONPATH=str(tmp_path)))

    assert ended.returncode == 2
    assert ended.stderr.endswith(": pip install 'headrace[demo]'\n")
    assert ended.stderr.count("\n") == 1


def test_a_model_that_cannot_answer_ends_the_demo_with_exit_code_1(tmp_path: Path) -> None:
    model = tmp_path / "magika" / "models" / demo_magika.RELEASE
    model.mkdir(parents=True)
    (tmp_path / "magika" / "__init__.py").touch()
    (model / "model.onnx").write_bytes(b"not a model")
    (model / "config.min.json").write_bytes((demo_magika.find() / "config.min.json").read_bytes())

    ended = demo("--keep", "pyproject.toml", env=environment(PYTHONPATH=str(tmp_path)))

    assert ended.returncode == 1
    assert "headrace: pyproject.toml: status " in ended.stderr
    assert "headrace: /readyz answered 503\n" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert "answers agree" not in ended.stdout
