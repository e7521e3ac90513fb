"""The command line: one sentence and one exit code per mistake; what `check` says and how it ends."""

import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import models
import numpy as np
import pytest

from worker import __version__, native
from worker.cli import check
from worker.cli import main as cli
from worker.errors import Reject, SickModel, StartError
from worker.model.signature import Signature, TensorSpec
from worker.telemetry import logs

CONFIG = """
input: {topics: [in], format: json, max_bytes: 1000}
model: {path: small.onnx}
postprocess: {classification: {labels: labels.txt}}
output: {topic: out}
dead_letter: {topic: dead}
kafka: {bootstrap.servers: "localhost:9092", group.id: g, sasl.password: hunter2}
"""

SIGNATURE = Signature(
    (TensorSpec("x", np.dtype(np.float32), "FP32", (None, 3)),),
    (TensorSpec("y", np.dtype(np.float32), "FP32", (None, 2)),),
    batchable=True,
)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    (tmp_path / "small.onnx").write_bytes(b"onnx")
    (tmp_path / "labels.txt").write_text("no\nyes\n")
    (tmp_path / "sample.json").write_text('{"features": [1, 2, 3]}')
    path = tmp_path / "worker.yaml"
    path.write_text(CONFIG)
    return path


@pytest.fixture
def app(monkeypatch: pytest.MonkeyPatch) -> Any:
    """No runtime and no broker: what loads the model, answers the sample and asks the broker; a test may let one fail."""
    model = SimpleNamespace(provider="cpu", signature=SIGNATURE, why_alone="", largest_difference=1e-7)
    servable = SimpleNamespace(label="small@0123abcd", model=model, decoder=None)
    rollout = SimpleNamespace(route=SimpleNamespace(max_bytes=1000, when=None), choose=lambda: servable)
    module: Any = ModuleType("worker.kafka.topics")
    module.check_broker = lambda settings: [("broker", "1 broker"), ("topics", "all there")]
    monkeypatch.setitem(sys.modules, "worker.kafka.topics", module)
    loading: Any = ModuleType("worker.serving.load")
    loading.load = lambda settings, took=None, registry=None: {"small": rollout}
    monkeypatch.setitem(sys.modules, "worker.serving.load", loading)
    module.sample = ModuleType("worker.cli.sample")
    module.sample.answer = lambda rollout, value, headers: {"prediction": {"label": "yes"}}
    monkeypatch.setitem(sys.modules, "worker.cli.sample", module.sample)
    return module


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes `check` a command that does what a test says."""

    def replace(run: Any) -> None:
        monkeypatch.setattr(check, "configure", lambda parser: None)
        monkeypatch.setattr(check, "run", run)

    return replace


def raising(error: BaseException) -> Any:
    def run(*_: Any) -> int:
        raise error

    return run


# --- the frame


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        ([], "COMMAND"),
        (["nope"], "nope"),
        (["check"], "CONFIG"),
        (["check", "x.yaml", "--bogus"], "--bogus"),
        (["check", "x.yaml", "--sample"], "--sample"),
        (["check", "x.yaml", "--off"], "--off"),
        (["check", "x.yaml", "--set", "batching"], "--set batching"),
    ],
)
def test_wrong_usage_is_one_sentence_and_exit_2(
    argv: list[str],
    named: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A usage error exits 2 with one line on standard error that names the argument."""
    monkeypatch.chdir(tmp_path)
    Path("x.yaml").write_text(CONFIG)
    assert cli.main(argv) == 2
    error = capsys.readouterr().err
    assert named in error
    assert error.startswith("streaminfer: ")
    assert error.count("\n") == 1


def test_version_and_help_need_no_runtime() -> None:
    """--version and every --help answer without importing ONNX Runtime, OpenCV or a Kafka client."""
    heavy = "{'onnxruntime', 'cv2', 'confluent_kafka'}"
    for argv in (["--version"], ["--help"], ["check", "--help"]):
        code = f"import sys; from worker.cli.main import main; c = main({argv}); sys.exit(c or bool({heavy} & set(sys.modules)))"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert done.returncode == 0, argv
        assert (__version__ if argv == ["--version"] else "example") in done.stdout


@pytest.mark.parametrize(
    "name", [name for name in cli.COMMANDS if (Path(cli.__file__).parent / f"{name}.py").exists()]
)
def test_every_command_has_help_with_an_example(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Each command that is there explains itself and shows how it is called."""
    assert cli.main([name, "--help"]) == 0
    shown = capsys.readouterr().out
    assert f"streaminfer {name}" in shown.partition("example")[2]


def test_a_command_that_is_not_there_is_not_offered(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A command without a module is neither listed nor accepted."""
    monkeypatch.setitem(cli.COMMANDS, "absent", "nothing")
    assert cli.main(["--help"]) == 0
    assert "absent" not in capsys.readouterr().out
    assert cli.main(["absent"]) == 2


@pytest.mark.parametrize("blocked", [set(), {signal.SIGTERM}], ids=["usual", "blocked"])
def test_a_worker_that_has_not_begun_leaves_with_0(blocked: set[signal.Signals], tmp_path: Path) -> None:
    """SIGTERM before anything was taken is a drain like any other, whatever mask the parent handed down."""
    config = tmp_path / "config.yaml"
    os.mkfifo(config)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, blocked)
    try:
        process = subprocess.Popen([sys.executable, "-m", "worker", "run", str(config)])
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    with config.open("w"):  # both ends are open: it is reading its configuration
        process.terminate()
        assert process.wait(30) == 0


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (StartError("no broker"), 3),
        (SickModel("it forgot"), 7),
        (KeyboardInterrupt(), 130),
    ],
)
def test_errors_become_exit_codes(
    error: BaseException,
    code: int,
    command: Any,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A WorkerError ends the process with the exit code of its class and at most its own sentence."""
    command(raising(error))
    assert cli.main(["check"]) == code
    shown = capsys.readouterr().err
    assert shown == (f"streaminfer: {error}\n" if str(error) else "")


@pytest.mark.parametrize(("stdout_is_read", "code"), [(True, 1), (False, 0)])
def test_only_a_reader_of_standard_output_may_have_seen_enough(stdout_is_read: bool, code: int) -> None:
    """A broken pipe is exit 0 when nobody reads standard output any more; any other broken pipe is a failure."""
    script = (
        "import sys, worker.cli.main as cli\n"
        "def run(argv): raise BrokenPipeError\n"
        "cli._dispatch = run\n"
        "sys.exit(cli.main([]))"
    )
    reader, writer = os.pipe()
    if not stdout_is_read:
        os.close(reader)
    done = subprocess.run(
        [sys.executable, "-c", script], stdout=writer, stderr=subprocess.DEVNULL, timeout=60
    )
    os.close(writer)
    if stdout_is_read:
        os.close(reader)
    assert done.returncode == code


def test_a_bug_is_one_line_and_a_traceback_in_the_log(
    command: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """An unexpected exception exits 1; the traceback is one log event, and a known secret is in neither."""

    def run(_: Any) -> int:
        logs.configure(["hunter2"])
        raise RuntimeError("boom\nhunter2")

    command(run)
    assert cli.main(["check"]) == 1
    *logged, last = capsys.readouterr().err.splitlines()
    assert last.startswith("streaminfer: a bug: RuntimeError: boom")
    assert "Traceback" in json.loads(logged[0])["exception"]
    assert "hunter2" not in last + logged[0]


def test_a_closed_pipe_is_quiet() -> None:
    """A command whose standard output is closed by its reader ends without a message."""
    code = (
        "import os, sys; r, w = os.pipe(); os.close(r); os.dup2(w, 1);"
        "from worker.cli.main import main; sys.exit(main(['--help']))"
    )
    environ = os.environ | {"PYTHONUNBUFFERED": ""}
    done = subprocess.run(
        [sys.executable, "-c", code], stderr=subprocess.PIPE, text=True, check=False, env=environ
    )
    assert (done.returncode, done.stderr) == (0, "")


# --- check


def lines(capsys: pytest.CaptureFixture[str]) -> dict[str, tuple[bool, str]]:
    """What `check --json` printed: name -> (ok, message)."""
    shown = map(json.loads, capsys.readouterr().out.splitlines())
    return {line["check"]: (line["ok"], line["message"]) for line in shown}


def test_check_goes_through_everything(config: Path, app: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """When all is well every check is one JSON line, in order, and the exit code is 0."""
    assert cli.main(["check", str(config), "--json", "--sample", str(config.parent / "sample.json")]) == 0
    checks = lines(capsys)
    assert list(checks) == [
        "config",
        "pipelines",
        "kafka",
        "labels",
        "custom code",
        "model file",
        "sample file",
        "model",
        "signature",
        "batchable",
        "sample",
        "batch path",
        "memory",
        "credentials",
        "broker",
        "topics",
    ]
    assert all(ok for ok, _ in checks.values())
    assert checks["model"][1] == "small@0123abcd on cpu"
    assert checks["signature"][1] == "small: x: FP32[*,3] -> y: FP32[*,2]"
    assert json.loads(checks["sample"][1]) == {"prediction": {"label": "yes"}}
    assert checks["batch path"][1] == f"{native.batch_path}, producer {native.producer_path}"
    assert "in_flight_bytes 256 + prefetch_bytes 16 + output_bytes 64" in checks["memory"][1]


def test_check_cuts_a_long_result(config: Path, app: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """Of a result of megabytes `check` prints the beginning and the length."""
    app.sample.answer = lambda *_: {"outputs": [0.5] * 100_000}
    assert cli.main(["check", str(config), "--json", "--sample", str(config.parent / "sample.json")]) == 0
    shown = lines(capsys)["sample"][1]
    assert len(shown) < 2200
    assert shown.endswith("(500,013 characters)")


def test_check_finds_the_port_in_use(config: Path, app: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """A `metrics.http` that somebody listens on is exit 3 and names the address, as `run` would."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        argv = ["check", str(config), "--json", "--offline", "--set", f"metrics.http={address}"]
        assert cli.main(argv) == 3
    ok, message = lines(capsys)["http"]
    assert not ok
    assert address in message


def test_check_offline_leaves_the_broker_out(
    config: Path, app: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """check --offline does not connect to the broker."""
    app.check_broker = raising(StartError("no broker"))
    assert cli.main(["check", str(config), "--json", "--offline"]) == 0
    assert "broker" not in lines(capsys)
    assert cli.main(["check", str(config), "--json"]) == 3
    assert lines(capsys)["broker"] == (False, "no broker")


def test_check_reads_well_as_text(config: Path, app: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """Without --json each check is a line that begins with its verdict, and no secret is shown."""
    assert cli.main(["check", str(config), "--offline"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("ok   config")
    assert "hunter2" not in shown


@pytest.mark.parametrize(
    ("broken", "name", "code"),
    [
        (["--set", "batching.max_size=x"], "config", 2),
        (["--set", "postprocess.classification.labels=none.txt"], "labels", 2),
        (["--set", "postprocess=no_such_module_here:f"], "custom code", 2),
        (["--set", "model.path=none.onnx"], "model file", 3),
        (["--set", "model.path=."], "model file", 3),
        (["--sample", "none.json"], "sample file", 2),
        (["--sample", "/"], "sample file", 2),
    ],
)
def test_check_ends_with_the_first_failure(
    broken: list[str], name: str, code: int, config: Path, app: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """A failed check is one line that is not ok, its sentence is on standard error, its code is the exit code."""
    assert cli.main(["check", str(config), "--json", "--offline", *broken]) == code
    shown = capsys.readouterr()
    failed = [line for line in map(json.loads, shown.out.splitlines()) if not line["ok"]]
    assert [line["check"] for line in failed] == [name]
    assert shown.err == f"streaminfer: {failed[0]['message']}\n"


def test_check_goes_on_after_a_failure(config: Path, app: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """One run shows every mistake that can be seen; the first decides the exit code."""
    argv = ["check", str(config), "--json", "--set", "model.path=none.onnx", "--sample", "none.json"]
    assert cli.main(argv) == 3
    failed = [name for name, (ok, _) in lines(capsys).items() if not ok]
    assert failed == ["model file", "sample file"]


@pytest.mark.parametrize("bad", ["too large", "undecodable"])
def test_a_bad_sample_is_exit_2_with_its_reason(
    bad: str, config: Path, app: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """A sample that would become a dead letter is the user's mistake and says which."""
    sample = config.parent / "bad.json"
    sample.write_bytes(b"x" * (1001 if bad == "too large" else 1))
    app.sample.answer = raising(Reject("not JSON", "undecodable"))
    assert cli.main(["check", str(config), "--json", "--offline", "--sample", str(sample)]) == 2
    ok, message = lines(capsys)["sample"]
    assert not ok
    assert bad.replace(" ", "_") in message


def test_model_list_shows_what_counts_and_what_is_meant(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """model list has a line for each version: the one that the settings mean is marked, one that does not count says why."""
    for version in ("1", "2", "10"):
        folder = tmp_path / "models" / "digits" / version
        folder.mkdir(parents=True)
        models.write(folder, models.identity())
        digest = hashlib.sha256((folder / "model.onnx").read_bytes()).hexdigest()
        (folder / "model.sha256").write_text(digest if version != "10" else "0" * 64)
    (tmp_path / "models" / "digits" / "aliases.yaml").write_text("stable: 1\n")
    config = tmp_path / "w.yaml"
    config.write_text(
        json.dumps(
            {
                "input": {"topics": ["in"], "format": "json"},
                "model": {"repository": "models", "name": "digits"},
                "output": {"topic": "out"},
                "dead_letter": {"topic": "dead"},
                "kafka": {"bootstrap.servers": "localhost:9", "group.id": "g"},
            }
        )
    )
    assert cli.main(["model", str(config), "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("  digits 10: does not count: model.onnx does not match")
    assert lines[1].startswith("* digits 2: ")
    assert lines[2].startswith("  digits 1 (stable): ")
    assert cli.main(["model", str(config), "list", "--json", "--set", "model.version=stable"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["version"] for row in rows if row["wanted"]] == ["1"]
    assert cli.main(["check", str(config), "--offline"]) == 0
    assert "digits/2" in capsys.readouterr().out
    assert cli.main(["check", str(config), "--offline", "--set", "model.version=7"]) == 3
    assert "has no version 7; there are 10, 2, 1" in capsys.readouterr().err
