"""The frame of the command line: how words are parsed, errors told, signals taken, output written, secrets asked for."""

from __future__ import annotations

import importlib
import io
import json
import os
import pty
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enigma import __version__
from enigma.cli import config as config_command
from enigma.cli import main as frame
from enigma.cli.context import Context
from enigma.cli.output import Output, Progress, format_bytes, format_duration, path_text, printable
from enigma.cli.passphrase import PassphraseSource
from enigma.errors import Locked, UsageError

ENIGMA = Path(sys.executable).with_name("enigma")
HEAVY = (
    "apsw",
    "cryptography",
    "zstandard",
    "boto3",
    "msgspec",
    "argon2",
    "tomllib",
    "logging",
    "multiprocessing",
    "json",
)

SAMPLE = """Copy something.

Usage:
  enigma sample [options] [--tag TAG]... <from> [<to>...]

Options:
  -n, --dry-run  Do nothing.
  --tag TAG      A label; may be repeated.
"""


def enigma(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the installed program, its home an empty place."""
    return subprocess.run(
        [ENIGMA, *words],
        env={"PATH": os.environ["PATH"], "HOME": "/nonexistent", **environment},
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        check=False,
    )


@pytest.fixture
def replaced_run(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Lets a test decide what `enigma config` does; puts the process's signal handlers back."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    yield lambda run: monkeypatch.setattr(config_command, "run", run)
    for number, handler in handlers.items():
        signal.signal(number, handler)


def failing(exc: BaseException) -> Any:
    def run(ctx: Context, args: Any) -> int:
        raise exc

    return run


# -- commands and help


def test_help_loads_nothing_heavy() -> None:
    program = f"import sys\nfrom enigma.cli.main import main\nmain(['--help'])\nprint([m for m in {HEAVY} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("Enigma: ")
    assert done.stdout.endswith("[]\n")


@pytest.mark.parametrize("name", frame.COMMANDS)
def test_every_command_has_a_usage_text_that_the_frame_can_read(name: str) -> None:
    module = importlib.import_module(f"enigma.cli.{name}")
    text = module.__doc__ or ""
    assert re.match(r"[A-Z].+\.\n", text)
    usage = frame._usage(text).splitlines()[1:]
    assert usage
    for line in usage:
        assert re.match(rf"  enigma {name}\b.*\[options\]", line), line
    frame._flags(text)
    assert callable(module.run)


@pytest.mark.parametrize("name", frame.COMMANDS)
def test_every_command_is_in_the_help_and_helps(name: str) -> None:
    assert re.search(rf"^  {name} +[A-Z].*\.$", frame.__doc__ or "", re.MULTILINE)
    for words in ([name, "--help"], [name, "-h"], ["--help", name], ["help", name], [name, "x", "--json", "-h"]):
        with pytest.raises(frame.Shown) as shown:
            frame.parse(words)
        assert f"enigma {name}" in shown.value.text


@pytest.mark.parametrize("words", [["--help"], ["-h"], ["help"]])
def test_help_goes_to_stdout_and_succeeds(words: list[str]) -> None:
    done = enigma(*words)
    assert (done.returncode, done.stderr) == (0, "")
    assert "Commands:" in done.stdout


def test_version_is_shown() -> None:
    assert enigma("--version").stdout == f"enigma {__version__}\n"
    assert json.loads(enigma("version", "--json").stdout)["libraries"]["zstandard"]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["lst"], "There is no command `lst`; did you mean `list`?"),
        (["xyzzy"], "There is no command `xyzzy`; `enigma --help` lists the commands."),
        ([], "No command given; `enigma --help` lists them."),
        (["config", "--jsno"], "There is no option --jsno; did you mean --json?"),
        (["config", "-Z"], "There is no option -Z."),
        (["config", "surplus"], "These arguments are missing something or have too much."),
        (["config", "--config-dir"], "Option --config-dir requires argument."),
        (["config", "--passphrase", "a", "--passphrase-file", "b"], "Give only one of"),
    ],
)
def test_a_wrong_command_line_is_told_in_one_sentence(words: list[str], sentence: str) -> None:
    done = enigma(*words)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith(f"enigma: {sentence}")


# -- options


def test_global_options_stand_on_either_side_of_the_command() -> None:
    for words in (
        ["--json", "--config-dir", "/c", "-vv", "config"],
        ["config", "-v", "--config-dir=/c", "-v", "--json"],
    ):
        options = frame.parse(words).options
        assert (options.json, options.config_dir, options.verbosity, options.quiet) == (True, "/c", 2, False)


def test_the_later_of_two_global_options_wins_and_verbosity_adds_up() -> None:
    options = frame.parse(["-v", "--config-dir", "/a", "config", "-v", "--config-dir", "/b"]).options
    assert (options.config_dir, options.verbosity) == ("/b", 2)


def test_an_option_of_the_command_wins_over_a_global_one() -> None:
    text = SAMPLE.replace("--tag TAG  ", "--json TAG ").replace("--tag TAG", "--json TAG")
    args = frame._parse_command(text, ["sample", "a", "--json", "value"])
    assert args["--json"] == ["value"]
    before = frame._docopt(frame.__doc__ or "", ["sample"], options_first=True)
    assert frame._merge(before, args, own=frame._flags(text)).json is False


def test_values_are_not_taken_for_global_options() -> None:
    args = frame._parse_command(SAMPLE, ["sample", "--tag", "--json", "--tag=-q", "a"])
    assert args["--tag"] == ["--json", "-q"]
    assert not args["--json"]
    assert not args["--quiet"]


def test_words_after_two_dashes_are_arguments_as_they_stand() -> None:
    args = frame._parse_command(SAMPLE, ["sample", "a", "-n", "--", "-x", "--json", "--", "--help", "sample"])
    assert args["<from>"] == "a"
    assert args["<to>"] == ["-x", "--json", "--", "--help", "sample"]
    assert args["--dry-run"]
    assert not args["--json"]


WORDS = st.text(st.characters(exclude_characters="\0"), max_size=6) | st.sampled_from(
    [
        "config",
        "version",
        "help",
        "--",
        "-",
        "-v",
        "-vvq",
        "--json",
        "--config-dir",
        "--config-dir=x",
        "--c",
        "--p",
        "-5",
        "--=",
    ]
)


@given(st.lists(WORDS, max_size=6))
def test_any_words_are_parsed_or_refused(words: list[str]) -> None:
    try:
        invocation = frame.parse(words)
    except (frame.CommandLineError, frame.Shown):
        return
    except ModuleNotFoundError as exc:
        pytest.fail(str(exc))
    assert isinstance(invocation.options, frame.GlobalOptions)


def test_no_secret_is_in_the_repr_of_what_was_parsed(capsys: pytest.CaptureFixture[str]) -> None:
    options = frame.parse(["--passphrase", "hunter2", "config"]).options
    source = PassphraseSource(text=options.passphrase, environment=options.passphrase)
    context = Context(Path("/c"), Output(), source)
    assert options.passphrase == "hunter2"
    assert "hunter2" not in f"{options!r} {source!r} {context!r}"


# -- how a run ends


def test_an_error_is_a_sentence_and_a_status(tmp_path: Path) -> None:
    done = enigma("--config-dir", str(tmp_path), "config")
    assert done.returncode == 10
    assert re.fullmatch(r"enigma: There is no repository in .*\n", done.stderr)


def test_with_json_an_error_is_an_object(tmp_path: Path) -> None:
    done = enigma("config", "--json", ENIGMA_CONFIG_DIR=str(tmp_path))
    error = json.loads(done.stderr)
    assert (error["type"], error["code"], error["exit_status"]) == ("error", "no-repository", 10)
    assert json.loads(enigma("--json", "lst").stderr)["code"] == "usage"


def test_a_fault_of_the_program_shows_no_traceback_unless_asked(
    replaced_run: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    replaced_run(failing(RuntimeError("two\nlines")))
    assert frame.main(["config"]) == 1
    plain = capsys.readouterr().err
    assert plain == "enigma: Unexpected RuntimeError: two lines (run again with -vv to see where).\n"
    assert frame.main(["config", "-v", "-v"]) == 1
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("exc", "status", "code"),
    [(KeyboardInterrupt(), 130, "interrupted"), (Locked("Busy."), 11, "locked"), (OSError(28, "Full"), 1, "internal")],
)
def test_every_end_has_its_status(
    replaced_run: Any, capsys: pytest.CaptureFixture[str], exc: BaseException, status: int, code: str
) -> None:
    replaced_run(failing(exc))
    assert frame.main(["config", "--json"]) == status
    assert json.loads(capsys.readouterr().err)["code"] == code


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_unwinds_and_then_ends_the_run(number: signal.Signals) -> None:
    program = """
import signal, sys, time
from enigma.cli import config, main
def run(ctx, args):
    try:
        print("ready", flush=True)
        while True:
            time.sleep(0.01)  # a pause() that begins just after the signal came would never end
    finally:
        print("cleaned up", flush=True)
config.run = run
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.exit(main.main(["config"]))
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=-1, stderr=-1, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        child.send_signal(number)
        stdout, stderr = child.communicate(timeout=30)
    assert child.returncode == 128 + number
    assert stdout == "cleaned up\n"
    assert re.fullmatch(r"enigma: .*\.\n", stderr)


def test_a_reader_that_goes_away_is_no_error() -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    done = subprocess.run([ENIGMA, "--help"], stdout=write_end, stderr=subprocess.PIPE, check=False)
    os.close(write_end)
    assert (done.returncode, done.stderr) == (141, b"")


def test_the_passphrase_in_the_environment_is_not_inherited(
    replaced_run: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[object] = []

    def run(ctx: Context, args: Any) -> int:
        seen.extend([ctx.passphrase(), os.environ.get("ENIGMA_PASSPHRASE")])
        return 0

    monkeypatch.setenv("ENIGMA_PASSPHRASE", "from outside")
    replaced_run(run)
    assert frame.main(["config"]) == 0
    assert seen == [b"from outside", None]


def test_config_shows_what_is_in_force_and_warns_of_open_files(tmp_path: Path) -> None:
    path = tmp_path / "enigma.toml"
    path.write_text(
        '[[providers]]\nname="m"\ntype="minio"\nbucket="b"\nendpoint_url="http://h"\naccess_key="ak"\nsecret_key="sk9"'
    )
    path.chmod(0o644)
    done = enigma("--config-dir", str(tmp_path), "config")
    assert done.returncode == 0
    assert 'secret_key = "***"' in done.stdout
    assert "sk9" not in done.stdout + done.stderr
    assert f"chmod 600 {path}" in done.stderr
    path.chmod(0o600)
    done = enigma("--config-dir", str(tmp_path), "config", "--json")
    assert done.stderr == ""
    assert json.loads(done.stdout)["providers"][0]["type"] == "S3Compatible"


# -- passphrase


def test_a_passphrase_comes_from_text_file_command_or_environment(tmp_path: Path) -> None:
    path = tmp_path / "pass"
    path.write_bytes(b"pass word \xff\n")
    assert PassphraseSource(text="given", environment="unused").read() == b"given"
    assert PassphraseSource(file=str(path), environment="unused").read() == b"pass word \xff"
    assert PassphraseSource(command="printf 'a b\\r\\n'", environment="unused").read() == b"a b"
    assert PassphraseSource(environment="env\udcff").read() == b"env\xff"


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (PassphraseSource(file="/nonexistent/file"), "No such file"),
        (PassphraseSource(file="/"), "Is a directory"),
        (PassphraseSource(file="/dev/zero"), "longer than"),
        (PassphraseSource(file="/dev/null"), "is empty"),
        (PassphraseSource(text=""), "is empty"),
        (PassphraseSource(command="false"), "exit status 1"),
        (PassphraseSource(command="/nonexistent/program"), "No such file"),
        (PassphraseSource(command="'unclosed"), "Can't run"),
        (PassphraseSource(command=""), "Can't run"),
    ],
)
def test_a_passphrase_that_cannot_be_had_is_a_usage_error(source: PassphraseSource, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        source.read()


def test_without_a_terminal_nothing_is_asked() -> None:
    program = "from enigma.cli.passphrase import PassphraseSource\nPassphraseSource().read()"
    done = subprocess.run([sys.executable, "-c", program], stdin=subprocess.DEVNULL, stderr=-1, text=True, check=False)
    assert "UsageError: No passphrase given" in done.stderr


@pytest.mark.parametrize(
    ("typed", "outcome"), [(["one", "one"], "b'one'"), (["one", "two"], "UsageError: The two"), (["", ""], "empty")]
)
def test_a_terminal_is_asked_twice_for_a_new_passphrase(typed: list[str], outcome: str) -> None:
    program = """
import os, sys
os.open(os.ttyname(0), os.O_RDWR)  # makes it the controlling terminal of this session
from enigma.cli.passphrase import PassphraseSource
print(PassphraseSource().read(confirm=True))
"""
    controller, terminal = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=terminal, stdout=-1, stderr=-1, text=True, start_new_session=True
    ) as child:
        os.close(terminal)
        for line in typed:
            read_until(controller, b": ")
            os.write(controller, line.encode() + b"\n")
        stdout, stderr = child.communicate(timeout=30)
    os.close(controller)
    assert outcome in stdout + stderr


def read_until(descriptor: int, end: bytes) -> None:
    seen = b""
    while not seen.endswith(end):
        seen += os.read(descriptor, 1)


# -- output


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def show(output: Output, clock: list[int]) -> None:
    """A backup of 4 MiB in four steps of half a second."""
    with output.progress("backup") as bar:
        for step in range(5):
            bar.update(
                Progress(step, step << 20, step << 19, total_files=4, total_bytes=4 << 20, current="d/\x1b[2Jname")
            )
            clock[0] += 500_000_000
    output.note("done")
    output.warn("careful")


def shown(stdout: io.StringIO, stderr: io.StringIO, **flags: bool) -> tuple[str, str]:
    clock = [0]
    show(Output(stdout=stdout, stderr=stderr, clock_ns=lambda: clock[0], **flags), clock)
    return stdout.getvalue(), stderr.getvalue()


def test_a_terminal_gets_a_bar_that_is_gone_at_the_end() -> None:
    out, err = shown(io.StringIO(), Terminal())
    assert out == "done\n"
    pictures = err.split("\r\x1b[K")
    assert pictures[-1] == "warning: careful\n"
    assert pictures[3].startswith(
        "backup  3 of 4 files  3.0 MiB of 4.0 MiB  1.5 MiB new  2.0 MiB/s  0:00 left"
    ) or pictures[3].startswith("backup  3 of 4 files  3.0 MiB of 4.0 MiB  1.5 MiB new  2.0 MiB/s  0:01 left")
    assert all(len(picture) <= 80 for picture in pictures)
    assert "\x1b[2J" not in err


def test_a_log_gets_no_bar() -> None:
    assert shown(io.StringIO(), io.StringIO()) == ("done\n", "warning: careful\n")


def test_quiet_keeps_warnings_only() -> None:
    assert shown(io.StringIO(), Terminal(), quiet=True) == ("", "warning: careful\n")


def test_json_gets_one_object_a_line_and_at_most_one_picture_a_second() -> None:
    out, err = shown(io.StringIO(), Terminal(), json=True)
    events = [json.loads(line) for line in out.splitlines()]
    assert [event["type"] for event in events] == ["progress"] * 3
    assert [event["bytes"] for event in events] == [0, 2 << 20, 4 << 20]
    assert events[2]["bytes_per_second"] == 2 << 20
    assert json.loads(err) == {"type": "warning", "message": "careful"}


def test_the_speed_forgets_what_was_long_ago() -> None:
    clock = [0]
    with Output(stderr=io.StringIO(), clock_ns=lambda: clock[0]).progress("restore") as bar:
        bar.advance(length_bytes=100 << 20)
        for _ in range(30):
            clock[0] += 1_000_000_000
            bar.advance(length_bytes=bar.state.length_bytes + 1000, total_bytes=1 << 30)
        assert bar.speed() == 1000
        assert len(bar._samples) < 15


def test_a_result_is_text_or_an_object() -> None:
    for flags, expected in (
        ({}, "two rows\n"),
        ({"json": True}, '{"type": "result", "rows": 2}\n'),
        ({"quiet": True}, "two rows\n"),
    ):
        stdout = io.StringIO()
        Output(stdout=stdout, stderr=io.StringIO(), **flags).result("two rows", {"rows": 2})
        assert stdout.getvalue() == expected


def test_a_name_cannot_steer_the_terminal_and_leaves_a_pipe_as_it_was() -> None:
    name = b"a\x1b]0;owned\x07\xff\n"
    terminal = Terminal()
    Output(stdout=terminal, stderr=io.StringIO()).note(path_text(name))
    assert terminal.getvalue() == "a\\x1b]0;owned\\x07\\udcff\n\n"
    raw = io.BytesIO()
    pipe = io.TextIOWrapper(raw, encoding="utf-8", errors="surrogateescape")
    Output(stdout=pipe, stderr=io.StringIO()).note(path_text(name))
    pipe.flush()
    assert raw.getvalue() == name + b"\n"


def test_a_letter_that_the_locale_lacks_leaves_as_an_escape() -> None:
    raw = io.BytesIO()
    pipe = io.TextIOWrapper(raw, encoding="ascii")
    Output(stdout=pipe, stderr=io.StringIO()).note("é")
    pipe.flush()
    assert raw.getvalue() == b"\\xe9\n"


@given(st.text())
def test_printable_text_has_no_control_characters(text: str) -> None:
    clean = printable(text)
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", clean)
    assert clean == text or re.search(r"[^\x20-\x7e]", text)


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1536, "1.5 KiB"),
        ((1 << 20) - 1, "1.0 MiB"),
        (5 << 40, "5.0 TiB"),
        (1 << 62, "4096.0 PiB"),
    ],
)
def test_bytes_are_shown_in_binary_units(count: int, text: str) -> None:
    assert format_bytes(count) == text


def test_durations_are_shown_as_clocks_show_them() -> None:
    assert [format_duration(seconds) for seconds in (0, 75, 4000, 90_061)] == ["0:00", "1:15", "1:06:40", "25:01:01"]


def test_log_records_follow_the_verbosity() -> None:
    program = """
import logging, sys
from enigma.cli.logs import start_logging
from enigma.cli.output import Output
start_logging(Output(), int(sys.argv[1]))
for name in ("enigma.x", "boto3"):
    logger = logging.getLogger(name)
    logger.debug("fine %s", name)
    logger.info("event %s", name)
    logger.warning("trouble %s", name)
"""
    expected = {
        "0": ["warning: trouble enigma.x"],
        "1": ["enigma.x: event enigma.x", "warning: trouble enigma.x", "warning: trouble boto3"],
        "2": [
            *("enigma.x: fine enigma.x", "enigma.x: event enigma.x", "warning: trouble enigma.x"),
            *("boto3: event boto3", "warning: trouble boto3"),
        ],
    }
    for verbosity, lines in expected.items():
        done = subprocess.run([sys.executable, "-c", program, verbosity], stderr=-1, text=True, check=True)
        assert done.stderr.splitlines() == lines
