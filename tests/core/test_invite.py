"""An invitation is one line, works once and soon, and the store keeps no secret."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from tierline.core.errors import SecurityError
from tierline.core.invite import Invitation, InviteStore
from tierline.core.pki import create_authority

ADDRESS = "cloud.example.org:7444"


class Wall:
    """A wall clock that tests turn by hand."""

    def __init__(self) -> None:
        self.s = 1_800_000_000.0

    def __call__(self) -> float:
        return self.s


@pytest.fixture
def wall() -> Wall:
    return Wall()


@pytest.fixture
def store(tmp_path: Path, wall: Wall) -> InviteStore:
    return InviteStore(tmp_path, wall)


def test_line_round_trip(tmp_path: Path) -> None:
    ca = create_authority(tmp_path, "gate").pem
    invitation = Invitation(ADDRESS, "orin-1", "secret", ca + ca, 1_800_000_000.5)
    line = invitation.encode()
    assert line.startswith("tl1.")
    assert line.split() == [line]
    assert len(Invitation(ADDRESS, "orin-1", "secret", ca, 0.0).encode()) < 1000
    assert Invitation.decode(line) == invitation
    assert Invitation.decode(f"  {line[:60]}\n  {line[60:]} \n") == invitation


def test_damaged_lines_are_told_from_foreign_ones(tmp_path: Path) -> None:
    line = Invitation(ADDRESS, "orin-1", "secret", create_authority(tmp_path, "gate").pem, 0.0).encode()
    swapped = line[:50] + ("A" if line[50] != "A" else "B") + line[51:]
    for damaged in (line[:-1], line[:-40], "tl1.", "tl1.%%%", swapped):
        with pytest.raises(SecurityError, match="not copied whole"):
            Invitation.decode(damaged)
    with pytest.raises(SecurityError, match=r"must start with 'tl1\.'"):
        Invitation.decode("ssh-ed25519 AAAA")


def test_token_works_once(store: InviteStore) -> None:
    token = store.create("orin-1", ADDRESS, b"").token
    store.check(token, "orin-1")
    store.redeem(token, "orin-1")
    with pytest.raises(SecurityError, match="used before"):
        store.redeem(token, "orin-1")


def test_token_expires(store: InviteStore, wall: Wall) -> None:
    invitation = store.create("orin-1", ADDRESS, b"")
    assert invitation.expires == wall.s + 15 * 60
    wall.s = invitation.expires
    with pytest.raises(SecurityError, match="expired"):
        store.redeem(invitation.token, "orin-1")


def test_token_is_for_one_node(store: InviteStore) -> None:
    token = store.create("orin-1", ADDRESS, b"").token
    store.create("orin-2", ADDRESS, b"")
    for wrong_token, wrong_node in ((token, "orin-2"), (token + "x", "orin-1"), ("", "orin-1"), (token, "orin-9")):
        with pytest.raises(SecurityError, match="unknown invitation"):
            store.redeem(wrong_token, wrong_node)
    store.redeem(token, "orin-1")


def test_newer_invitation_ends_the_older(store: InviteStore) -> None:
    older, newer = store.create("orin-1", ADDRESS, b"").token, store.create("orin-1", ADDRESS, b"").token
    with pytest.raises(SecurityError, match="unknown"):
        store.redeem(older, "orin-1")
    store.redeem(newer, "orin-1")


def test_two_claims_at_once_get_one_certificate(tmp_path: Path, wall: Wall) -> None:
    token = InviteStore(tmp_path, wall).create("orin-1", ADDRESS, b"").token
    rival_store = InviteStore(tmp_path, wall)
    rival_outcome: list[str] = []

    def rival() -> None:
        try:
            rival_store.redeem(token, "orin-1")
            rival_outcome.append("redeemed")
        except SecurityError as error:
            rival_outcome.append(str(error))

    thread = threading.Thread(target=rival)

    def look_at_the_clock() -> float:
        """Called between reading the invitation and spending it: the rival must have to wait right here."""
        if not thread.ident:
            thread.start()
            thread.join(0.2)
        return wall()

    InviteStore(tmp_path, look_at_the_clock).redeem(token, "orin-1")
    thread.join(30)
    assert len(rival_outcome) == 1
    assert "used before" in rival_outcome[0]


def test_store_keeps_no_token_and_is_private(store: InviteStore, tmp_path: Path) -> None:
    token = store.create("orin-1", ADDRESS, b"").token
    file = tmp_path / "nodes.sqlite"
    assert token.encode() not in file.read_bytes()
    assert file.stat().st_mode & 0o077 == 0


def test_hosts_of_another_node_are_not_given_away(store: InviteStore, wall: Wall) -> None:
    store.record("cloud", "c0", ["cloud.example.org", "127.0.0.1"], wall.s + 100)
    token = store.create("orin-1", ADDRESS, b"").token
    with pytest.raises(SecurityError, match=r"belongs to node 'cloud'.*invite orin-1 --host cloud\.example"):
        store.check(token, "orin-1", ["cloud.example.org"])
    store.check(token, "orin-1", ["orin-1.local", "127.0.0.1"])
    allowed = store.create("orin-1", ADDRESS, b"", hosts=["cloud.example.org"]).token
    with pytest.raises(SecurityError, match=r"invited for cloud.example.org, not for host 'orin-1\.local'"):
        store.check(allowed, "orin-1", ["orin-1.local"])
    store.redeem(allowed, "orin-1", ["cloud.example.org"])


def test_revocation_ends_certificates_and_invitations(store: InviteStore, wall: Wall) -> None:
    store.record("orin-1", "aa", [], wall.s + 100)
    assert store.revoked_serials() == ()
    open_token = store.create("orin-1", ADDRESS, b"").token
    store.revoke("orin-1")
    assert store.revoked_serials() == ("aa",)
    with pytest.raises(SecurityError, match="unknown"):
        store.redeem(open_token, "orin-1")
    store.record("orin-1", "bb", [], wall.s + 100)  # invited again: the new certificate counts, the old stays revoked
    assert store.revoked_serials() == ("aa",)
    with pytest.raises(SecurityError, match="'orin-9': never invited"):
        store.revoke("orin-9")


def test_nodes_are_listed_with_their_state(store: InviteStore, wall: Wall) -> None:
    store.record("a", "a1", ["a.local"], wall.s + 10_000)
    store.record("b", "b1", [], wall.s + 10)
    store.record("c", "c1", [], wall.s + 10_000)
    store.revoke("c")
    store.create("d", ADDRESS, b"")
    store.create("e", ADDRESS, b"", minutes=0.1)
    wall.s += 10
    assert [(n.node_id, n.state, n.hosts) for n in store.nodes()] == [
        ("a", "enrolled", ("a.local",)),
        ("b", "expired", ()),
        ("c", "revoked", ()),
        ("d", "invited", ()),
        ("e", "expired", ()),
    ]


def test_unusable_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(SecurityError, match=r"absent/nodes\.sqlite: cannot be used"):
        InviteStore(tmp_path / "absent")
