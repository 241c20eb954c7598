"""Show the versions of Enigma, of Python and of the libraries it runs on.

Usage:
  enigma version [options]
"""

from __future__ import annotations

import platform
import re
from importlib import metadata

from enigma import __version__
from enigma.cli.context import Args, Context
from enigma.errors import EXIT_DONE


def run(ctx: Context, args: Args) -> int:
    """Show them; needs no repository."""
    libraries = _libraries()
    record = {
        "enigma": __version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "libraries": libraries,
    }
    lines = [f"enigma {__version__}", f"python {record['python']} on {record['system']}"]
    lines += [f"  {name} {version}" for name, version in libraries.items()]
    ctx.output.result("\n".join(lines), record)
    return EXIT_DONE


def _libraries() -> dict[str, str]:
    """What the installed metadata says Enigma needs, and the version of each that is there."""
    try:
        requirements = metadata.requires("enigma") or []
    except metadata.PackageNotFoundError:  # run from a source tree that was never installed
        return {}
    needed = [requirement for requirement in requirements if "extra ==" not in requirement]
    return {name: _installed(name) for name in sorted(re.split(r"[^\w.-]", line)[0] for line in needed)}


def _installed(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "missing"
