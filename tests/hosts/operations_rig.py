"""A lab of the hosts that backups travel between, and the playbooks played on it as a person would."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.lab.host import Host
from tests.lab.lab import Lab

REPOSITORY = Path(__file__).parents[2]
MIGRATIONS = REPOSITORY / "app/bazaruto/service/migrations"
SEED = REPOSITORY / "tests/integration/roles/seed.sql"
STORE = Path("/var/backups/bazaruto")
NAME = "operations"


@dataclasses.dataclass
class Play:
    """How a playbook ended."""

    code: int
    said: str  # in one line, so that a sentence is found wherever it was broken
    result: dict[str, Any]


class Rig:
    """db1 makes backups, ctl1 keeps them, mon1 proves them."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.lab = Lab(home / "lab" / NAME)

    def up(self) -> None:
        """Boot them, with the service's tables and some data on db1, and let backups travel."""
        self.db1, self.ctl1, self.mon1, self.app1 = self.lab.up(["db1", "ctl1", "mon1", "app1"])
        self.db1.run("apt-get install -qq --no-install-recommends postgresql-15 python3-psycopg", seconds=300)
        parts = [
            "CREATE ROLE bazaruto_owner; CREATE ROLE bazaruto LOGIN; CREATE DATABASE bazaruto OWNER bazaruto_owner;"
        ]
        parts += ["\\connect bazaruto", "SET ROLE bazaruto_owner;"]
        parts += [path.read_text(encoding="utf-8") for path in sorted(MIGRATIONS.glob("0*.sql"))]
        self.sql("\n".join([*parts, SEED.read_text(encoding="utf-8")]), "postgres")
        provisioned = self.play("backup_store")
        assert provisioned.code == 0, provisioned.said

    def sql(self, statements: str, database: str = "bazaruto") -> str:
        """What PostgreSQL on db1 answers its superuser."""
        words = self.db1.ssh("sudo", "-u", "postgres", "psql", "-XqAt", "-v", "ON_ERROR_STOP=1", database)
        done = subprocess.run(words, input=statements, capture_output=True, text=True, check=True, timeout=120)
        return done.stdout.strip()

    def play(self, playbook: str, *words: str, **variables: Any) -> Play:
        """Play it to its end."""
        process = self.start(playbook, *words, **variables)
        said, _ = process.communicate(timeout=280)
        stats = [line for line in said.splitlines() if line.startswith("\tRUN: ")]
        result = json.loads(stats[0].removeprefix("\tRUN: "))["result"] if stats else {}
        return Play(process.returncode, " ".join(said.replace("\\n", " ").split()), result)

    def start(self, playbook: str, *words: str, **variables: Any) -> subprocess.Popen[str]:
        """Play it, and return while it plays."""
        argv = [Path(sys.executable).with_name("ansible-playbook"), "-i", "inventories/lab"]
        argv += [f"playbooks/{playbook}.yml", *words, "-e", json.dumps(variables)]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("BAZARUTO_")}
        environment |= {
            "BAZARUTO_HOME": str(self.home),
            "BAZARUTO_LAB": NAME,
            "ANSIBLE_SHOW_CUSTOM_STATS": "true",
            "ANSIBLE_CALLBACK_RESULT_FORMAT": "json",
            "ANSIBLE_NOCOLOR": "true",
        }
        return subprocess.Popen(
            argv,
            cwd=REPOSITORY,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def listed(self, host: Host) -> list[str]:
        """What a list of backups on a host would show."""
        found = host.run(f"find {STORE} -maxdepth 1 -name 'bazaruto_*' -printf '%f\\n'").stdout.split()
        return sorted({Path(name).stem for name in found if name.endswith((".dump", ".json"))})

    def copy_of_store(self, into: Path) -> Path:
        """The store as it is, with its times to the nanosecond."""
        words = self.ctl1.ssh("sudo", "tar", "--format=posix", "-C", str(STORE), "-cf", "-", ".")
        packed = subprocess.run(words, capture_output=True, check=True, timeout=60).stdout
        subprocess.run(["tar", "-C", into, "-xf", "-"], input=packed, check=True, timeout=60)  # Python's rounds times
        return into

    def as_store(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run a program on ctl1 as the store's account, which has its key."""
        argv = self.ctl1.ssh("sudo", "-u", "bazaruto-backup", *words)
        return subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60)
