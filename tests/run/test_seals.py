"""Seals of caches: any damage is found, and what is being written or was removed is no damage."""

import logging

import pytest

from distill.run.seals import damaged, is_damaged, sealed, take_away


def flipped(content: bytes) -> bytes:
    return content[:5] + bytes([content[5] ^ 1]) + content[6:]


DAMAGE = {
    "a bit": flipped,
    "cut": lambda content: content[:-1],
    "zero length": lambda _: b"",
    "longer": lambda c: c + c,
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_any_change_of_a_sealed_file_is_found_and_it_is_set_aside(tmp_path, damage, caplog):
    (tmp_path / "deep").mkdir()
    path, other = tmp_path / "deep" / "a.arrow", tmp_path / "b.json"
    for file in (path, other):
        with sealed(file):
            file.write_bytes(b"0123456789")
    assert damaged([tmp_path]) == []
    path.write_bytes(DAMAGE[damage](path.read_bytes()))
    assert is_damaged(path) and damaged([tmp_path, tmp_path / "missing"]) == [path]
    with caplog.at_level(logging.WARNING):
        take_away(path)
    assert "a.arrow: damaged" in caplog.text and not path.exists()
    assert path.with_name("a.arrow.damaged").exists() and damaged([tmp_path]) == []


def test_a_file_without_a_seal_or_a_seal_without_a_file_is_not_damaged(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"x")
    assert not is_damaged(path)
    with pytest.raises(RuntimeError), sealed(path):
        path.write_bytes(b"y")
        raise RuntimeError("killed")
    assert not is_damaged(path)
    with sealed(path):
        path.write_bytes(b"z")
    path.unlink()
    assert damaged([tmp_path]) == []
