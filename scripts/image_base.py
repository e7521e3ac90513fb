"""The two bases of the image where no registry can be reached: Debian's packages, and on them the Python that runs this.

Stand-ins, named as such. They differ from the published ones: the Python is a build of this machine and not of Docker's.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

RELEASE = "bookworm"
DEBIAN, PYTHON = "localhost/streaminfer-base-debian", "localhost/streaminfer-base-python"
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
LEAVE_OUT = ("man", "locale")
SOURCES = Path("/etc/apt/sources.list.d/debian.sources")
LIBRARIES = "libbz2-1.0 libffi8 liblzma5 libncursesw6 libreadline8 libsqlite3-0 libssl3 libuuid1 zlib1g ca-certificates"
"""What a CPython is linked to."""
SKIP = ("__pycache__", "test", "tests", "idlelib", "tkinter", "turtledemo", "*.a", "site-packages")
APT_KEEPS_NOTHING = """\
Dir::Cache::pkgcache "";
Dir::Cache::srcpkgcache "";
Acquire::Languages "none";
DPkg::Post-Invoke { "rm -f /var/cache/apt/archives/*.deb /var/cache/apt/*.bin || true"; };
"""


class MissingError(Exception):
    """A program that is not installed, or a Python that cannot be copied."""


def make(builder: str, out: Path) -> dict[str, str]:
    """Make both bases, unless they are there; returns the build arguments that name them.

    Raises:
        MissingError: there is no mmdebstrap, or the Python that runs this belongs to the system.
        CalledProcessError: a step failed; what it said is on standard error.
    """
    python = f"{PYTHON}:{sysconfig.get_python_version()}"
    if not exists(builder, DEBIAN):
        make_debian(builder, out / "base")
    if not exists(builder, python):
        make_python(builder, out / "base", python)
    return {"DEBIAN_IMAGE": DEBIAN, "PYTHON_IMAGE": python}


def build_command(builder: str, pull: bool) -> list[str]:
    """How an image is built: buildah without a daemon, and in Docker's format, since OCI's has no health check."""
    if builder == "docker":
        return ["docker", "build", "--network", "host"]
    how = ["--format", "docker", "--isolation", "chroot", "--network", "host", "--layers"]
    return ["buildah", "build", *how, *([] if pull else ["--pull-never"])]


def exists(builder: str, name: str) -> bool:
    kind = ["image", "inspect"] if builder == "docker" else ["inspect", "--type", "image"]
    return not subprocess.run([builder, *kind, name], capture_output=True).returncode


def make_debian(builder: str, folder: Path) -> None:
    """Debian's smallest system without manuals and translations, about what ``debian:bookworm-slim`` is."""
    if not shutil.which("mmdebstrap"):
        raise MissingError("--base-from-debian needs mmdebstrap: apt-get install mmdebstrap")
    print("making a base of Debian's packages (20 s)", file=sys.stderr)
    folder.mkdir(parents=True, exist_ok=True)
    archive, settings = folder / "debian.tar", folder / "apt.conf"
    settings.write_text(APT_KEEPS_NOTHING)
    hooks = Path("/usr/share/mmdebstrap/hooks/merged-usr")
    command = ["mmdebstrap", "--quiet", "--variant=minbase", "--include=ca-certificates"]
    command += [f"--dpkgopt=path-exclude=/usr/share/{part}/*" for part in LEAVE_OUT]
    command += [
        "--dpkgopt=path-exclude=/usr/share/doc/*",
        "--dpkgopt=path-include=/usr/share/doc/*/copyright",
    ]
    command += [f"--hook-dir={hooks}", "--include=usr-is-merged"] if hooks.is_dir() else []
    command += [f"--customize-hook=copy-in {settings} /etc/apt/apt.conf.d"]
    command += ["--customize-hook=rm -rf $1/var/cache/apt/*.bin $1/var/log/*"]
    run([*command, RELEASE, str(archive), *([str(SOURCES)] if SOURCES.exists() else [])])
    if builder == "docker":
        run(["docker", "import", str(archive), DEBIAN])
    else:
        recipe = folder / "Dockerfile.debian"
        recipe.write_text(f'FROM scratch\nADD {archive.name} /\nENV PATH={PATH}\nCMD ["bash"]\n')
        run([*build_command(builder, pull=False), "--file", str(recipe), "--tag", DEBIAN, str(folder)])
    archive.unlink()


def make_python(builder: str, folder: Path, name: str) -> None:
    """On the first base, this Python in ``/usr/local``, as ``python:3.x-slim-bookworm`` has it."""
    prefix = Path(sys.base_prefix)
    if prefix in (Path("/usr"), Path("/")):
        raise MissingError(
            "--base-from-debian copies the Python that runs it, and this one is a part of the system: "
            "run scripts/image with one that is in a folder of its own, such as pyenv's"
        )
    print(f"making a base with the Python of {prefix}", file=sys.stderr)
    local = folder / "local"
    shutil.rmtree(local, ignore_errors=True)
    for part in ("bin", "lib", "include"):
        shutil.copytree(prefix / part, local / part, symlinks=True, ignore=shutil.ignore_patterns(*SKIP))
    short = sysconfig.get_python_version()
    for script in (
        local / "bin"
    ).iterdir():  # but for Python itself they have this machine's path in the first line
        if not script.name.startswith("python") or script.name.endswith("-config"):
            script.unlink()
    (local / "lib" / f"python{short}" / "site-packages").mkdir()
    recipe = folder / "Dockerfile.python"
    recipe.write_text(
        f"FROM {DEBIAN}\n"
        f"RUN apt-get update && apt-get install -y --no-install-recommends {LIBRARIES} && rm -rf /var/lib/apt/lists/*\n"
        "COPY local /usr/local\n"
        f"RUN ldconfig && ln -sf python{short} /usr/local/bin/python3 && ln -sf python3 /usr/local/bin/python"
        " && python -c 'import ssl, ctypes, lzma, bz2, sqlite3, uuid, venv, ensurepip'\n"
    )
    run([*build_command(builder, pull=False), "--file", str(recipe), "--tag", name, str(folder)])
    shutil.rmtree(local)


def run(command: list[str]) -> None:
    subprocess.run(command, check=True, stdout=sys.stderr)
