"""postgres_server - a Postgres for a whole test file, with a database for each test"""

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
from pathlib import Path

from .basics import scratch_dir
from .processes import Server


def postgres_bin():
    """The directory of initdb and postgres, the newest version's, or None."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[4]))
    if found:
        return found[-1].parent
    return Path(shutil.which("initdb")).parent if shutil.which("initdb") else None


def unprivileged_user():
    """Postgres refuses to run as root; then it is the user that its package made, or nobody."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name).pw_name
    raise AssertionError("no user to run Postgres as")


class Postgres(Server):
    """A private cluster on a Unix socket. Anybody on the machine who gets to the socket is let in, but the role
    `locked` needs its password; tests of passwords use that."""

    death_signal = signal.SIGQUIT  # "immediate shutdown": it takes its own children along
    LOCKED_PASSWORD = "let me in"

    def __init__(self, directory, name="postgres"):
        self.directory = Path(directory) / name
        self.directory.mkdir()
        self.data = self.directory / "data"
        user = unprivileged_user()
        if user:
            shutil.chown(self.directory, user)
        self.initdb(user)
        settings = {"listen_addresses": "", "unix_socket_directories": self.directory,
                    "unix_socket_permissions": "0700", "fsync": "off", "full_page_writes": "off",
                    "shared_buffers": "32MB", "max_connections": "50", "autovacuum_naptime": "10min"}
        argv = [postgres_bin() / "postgres", "-D", self.data]
        for setting, value in settings.items():
            argv += ["-c", f"{setting}={value}"]
        super().__init__(name, directory, argv, user=user)
        self.databases = 0

    def initdb(self, user):
        subprocess.run([postgres_bin() / "initdb", "-N", "-D", self.data, "-A", "trust", "-U", "postgres", "-E",
                        "UTF8", "--no-locale", "--no-instructions"], check=True, user=user, cwd=self.directory,
                       extra_groups=[] if user else None, stdout=subprocess.DEVNULL)
        hba = self.data / "pg_hba.conf"
        hba.write_text("local all locked scram-sha-256\nlocal all all trust\n")

    def _answers(self):
        return subprocess.run(["psql", "-X", "-c", "select 1", self.url("postgres")], stdout=subprocess.DEVNULL,
                              stderr=subprocess.DEVNULL).returncode == 0

    def stop(self):
        """A fast shutdown: sessions are cut, nothing is lost."""
        if self.alive:
            self.signal(signal.SIGINT)
        return self.wait()

    def kill(self):
        """Not kill -9: that would leave shared memory behind. "Immediate" is a crash too."""
        if self.alive:
            self.signal(signal.SIGQUIT)
            self.wait()

    def url(self, database, user="postgres", directory=None):
        return f"host={directory or self.directory} dbname={database} user={user}"

    def new_database(self):
        self.databases += 1
        name = f"test_{self.databases}"
        self.query(f"create database {name}", "postgres")  # nobody may be connected to template1, which it is a copy of
        return name

    def query(self, sql, database):
        """Rows as lists of text; NULL is ''."""
        done = subprocess.run(["psql", "-XAtq", "-F", "\t", "-v", "ON_ERROR_STOP=1", "-c", sql, self.url(database)],
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        if done.returncode != 0:
            raise AssertionError(f"psql: {done.stderr}\n{sql}")
        return [line.split("\t") for line in done.stdout.splitlines()]


# One cluster for a whole test file: initdb takes half a second, a database 50 ms.
_postgres = None


def postgres():
    global _postgres
    if _postgres is None:
        _postgres = Postgres(scratch_dir("counterd-pg-")).start()
    elif not _postgres.alive:  # a test stopped it
        _postgres.start()
    return _postgres
