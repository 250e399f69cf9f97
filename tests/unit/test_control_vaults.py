"""A run knows what the vaults of its content hold, by whatever password Ansible itself would open them with."""

from __future__ import annotations

from pathlib import Path

import pytest
from ansible.parsing.vault import VaultLib, VaultSecret

from bazaruto.control.engine import vaults

REPOSITORY = Path(__file__).parents[2]
PLAIN = "user: bob\nnested: {password: hunter22, list: [PLANTED1, 987654, true, null]}\n"


def sealed(plain: str, password: str, label: str | None = None) -> str:
    secret = VaultSecret(password.encode())
    return str(VaultLib().encrypt(plain.encode(), secret, vault_id=label), "ascii")


def inline(name: str, block: str) -> str:
    return f"{name}: !vault |\n" + "".join(f"    {line}\n" for line in block.splitlines())


@pytest.fixture
def content(tmp_path: Path) -> Path:
    for part in ("playbooks", "roles/r/vars", "inventories/lab/group_vars", "inventories/other"):
        (tmp_path / part).mkdir(parents=True)
    return tmp_path


def password_file(content: Path, text: str, name: str = "key", mode: int = 0o600) -> Path:
    path = content / name
    path.write_text(text)
    path.chmod(mode)
    return path


def known(content: Path, file: Path | None) -> str:
    return str(vaults.secrets(content, content / "inventories" / "lab", content / "var", file))


def test_values_of_files_and_inline_ones_are_known_and_those_of_other_environments_are_not(content: Path) -> None:
    (content / "inventories/lab/group_vars/all.yml").write_text(sealed(PLAIN, "one"))
    (content / "roles/r/vars/main.yml").write_text("plain: x\n" + inline("token", sealed("0123: PLANTED2\n", "one")))
    (content / "inventories/other/hosts.yml").write_text(sealed("a: PLANTED3", "two"))
    values = known(content, password_file(content, "one\n"))
    assert all(value in values for value in ("hunter22", "PLANTED1", "987654", "0123: PLANTED2", "'one'"))
    assert "PLANTED3" not in values


def test_each_vault_id_is_opened_with_its_password_and_one_without_stays_closed(content: Path) -> None:
    (content / "ansible.cfg").write_text("[defaults]\nvault_identity_list = dev@key, prod@other ; both\n")
    password_file(content, "one")
    password_file(content, "two", "other")
    (content / "playbooks/a.yml").write_text(sealed("a: PLANTED1", "one", "dev"))
    (content / "playbooks/b.yml").write_text(sealed("a: PLANTED2", "two", "prod"))
    (content / "playbooks/c.yml").write_text(sealed("a: PLANTED3", "three", "elsewhere"))
    values = known(content, None)
    assert "PLANTED1" in values
    assert "PLANTED2" in values
    assert "PLANTED3" not in values


def test_the_vault_of_the_lab_that_is_meant_is_known_and_those_of_others_are_left_closed(
    content: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for lab, password in (("default", "one"), ("other", "two")):
        (content / "var/lab" / lab).mkdir(parents=True)
        (content / "var/lab" / lab / "secrets.yml").write_text(sealed(f"a: PLANTED-{lab}", password))
    file = password_file(content, "one")
    assert "PLANTED-default" in known(content, file)
    assert "PLANTED-other" not in known(content, file)
    assert vaults.secrets(content, content / "inventories" / "other", content / "var", file) == []
    monkeypatch.setenv("BAZARUTO_LAB", "other")
    with pytest.raises(vaults.VaultError, match="cannot be decrypted"):
        known(content, file)


def test_the_repository_asks_the_lab_for_its_password_and_another_one_beats_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab = tmp_path / "lab" / "default"
    lab.mkdir(parents=True)
    (lab / "secrets.yml").write_text(sealed("a: PLANTED1", "the lab's"))
    (lab / "vault-password").write_text("the lab's\n")
    monkeypatch.setenv("BAZARUTO_HOME", str(tmp_path))
    monkeypatch.delenv("BAZARUTO_LAB", raising=False)
    inventory = REPOSITORY / "inventories" / "lab"
    assert "PLANTED1" in str(vaults.secrets(REPOSITORY, inventory, tmp_path, None))
    with pytest.raises(vaults.VaultError, match="cannot be decrypted"):
        vaults.secrets(REPOSITORY, inventory, tmp_path, password_file(tmp_path, "wrong"))


def test_a_client_script_is_asked_for_the_id(content: Path) -> None:
    script = password_file(content, '#!/bin/sh\necho "password of $2"\n', "keyring-client.sh", 0o755)
    (content / "playbooks/a.yml").write_text(sealed("a: PLANTED1", "password of default"))
    assert "PLANTED1" in known(content, script)


def test_without_any_password_nothing_is_known_and_nothing_fails(content: Path) -> None:
    (content / "playbooks/a.yml").write_text(sealed("a: PLANTED1", "one"))
    assert vaults.secrets(content, content / "inventories" / "lab", content / "var", None) == []


@pytest.mark.parametrize(
    ("text", "mode", "trouble"),
    [
        ("wrong", 0o600, "cannot be decrypted"),
        ("one", 0o640, "can be read by others: `chmod 0600"),
        ("#!/bin/sh\necho one\n", 0o777, "can be changed by others: `chmod go-w"),
        ("#!/bin/sh\nexit 3\n", 0o700, "cannot be had from"),
    ],
)
def test_a_password_that_is_wrong_or_open_to_others_is_refused(
    text: str, mode: int, trouble: str, content: Path
) -> None:
    (content / "playbooks/a.yml").write_text(sealed("a: PLANTED1", "one"))
    with pytest.raises(vaults.VaultError, match=trouble):
        known(content, password_file(content, text, mode=mode))


def test_a_password_file_that_is_not_there_is_refused(content: Path) -> None:
    with pytest.raises(vaults.VaultError, match="cannot be read"):
        known(content, content / "nothing")
