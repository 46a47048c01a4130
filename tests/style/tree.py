"""tree - which files are ours: what git tracks, or, in a tree without git, all but the build directories"""

import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def files():
    """Paths relative to the top, sorted."""
    try:
        listed = subprocess.run(["git", "-C", ROOT, "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
                                check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL).stdout
        paths = [Path(name) for name in listed.decode().split("\0") if name]
    except (OSError, subprocess.CalledProcessError):
        paths = [path.relative_to(ROOT) for path in ROOT.rglob("*") if path.is_file()]
    return sorted(path for path in paths
                  if (ROOT / path).is_file() and not path.parts[0].startswith(("build", ".git")))


def sources():
    return [path for path in files() if path.suffix in (".c", ".h")]


def shell_scripts():
    def is_shell(path):
        with open(ROOT / path, "rb") as file:
            first = file.readline(80)
        return first.startswith(b"#!") and (b"bash" in first or first.split(b"/")[-1].startswith(b"sh"))
    return [path for path in files() if path.suffix == ".sh" or is_shell(path)]
