"""Every command that the README shows is run; every command there is, is documented."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from enigma.cli.main import COMMANDS

README = Path(__file__).parent.parent / "README.md"


def console_lines() -> list[str]:
    blocks = re.findall(r"```console\n(.*?)```", README.read_text(), re.DOTALL)
    return [line[2:] for block in blocks for line in block.splitlines() if line.startswith("$ ")]


def test_every_command_of_the_readme_runs_in_its_order(tmp_path: Path) -> None:
    documents = tmp_path / "documents"
    (documents / "git" / "contrib" / "workdir").mkdir(parents=True)
    (documents / "git" / "contrib" / "workdir" / "git-new-workdir").write_text("#!/bin/sh\n")
    (documents / "GPL-3").write_text("everyone is permitted\n" * 1000)
    shim = tmp_path / "bin" / "enigma"
    shim.parent.mkdir()
    shim.write_text(f'#!/bin/sh\nexec {sys.executable} -m enigma "$@"\n')
    shim.chmod(0o755)
    environment = {"HOME": str(tmp_path), "PATH": f"{shim.parent}:{os.environ['PATH']}"}
    environment["PYTHONPATH"] = str(README.parent)
    lines = console_lines()
    assert len(lines) >= 14
    for line in lines:
        done = subprocess.run(line, shell=True, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{line}\n{done.stderr}"
        assert "warning" not in done.stderr
    assert (tmp_path / "restored" / "git" / "contrib" / "workdir" / "git-new-workdir").read_text() == "#!/bin/sh\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_in_the_readme_and_explains_itself(command: str) -> None:
    assert f"enigma {command}" in README.read_text()
    done = subprocess.run(
        [sys.executable, "-m", "enigma", command, "--help"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0
    assert f"enigma {command}" in done.stdout


def test_the_exit_codes_of_the_readme_are_those_of_the_program() -> None:
    from enigma import errors

    codes = {value for name, value in vars(errors).items() if name.startswith("EXIT_")}
    table = README.read_text().split("### Exit codes")[1].split("##")[0]
    assert codes == {int(code) for code in re.findall(r"\| (\d+) \|", table)}
