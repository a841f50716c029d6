"""`make peers`: environments from locks; a peer that cannot be installed is left out."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmark.peers import install
from benchmark.peers.install import LOCKS, error_of, peers, python_of
from benchmark.peers.models import MODELS, OURS

_HASH = "0" * 64


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder of locks: one that cannot be met, and one that asks for nothing."""
    monkeypatch.setenv("UV_OFFLINE", "1")
    locks = tmp_path / "locks"
    locks.mkdir()
    (locks / "bogus.txt").write_text(f"there-is-no-such-package==1.0 --hash=sha256:{_HASH}\n")
    (locks / "empty.txt").write_text("# nothing\n")
    return locks


def test_a_peer_that_cannot_be_installed_is_left_out_and_the_others_are_installed(
    offline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    environments = tmp_path / "environments"
    monkeypatch.setattr(install, "LOCKS", offline)
    monkeypatch.setattr(install, "ENVIRONMENTS", environments)
    monkeypatch.setattr("sys.argv", ["install"])
    install.main()  # ends without an error
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("1/2 bogus: failed")
    assert lines[1].startswith("2/2 empty: installed")
    assert "left out: bogus: uv pip install ended with status" in lines[2]
    assert python_of("bogus", environments) is None
    assert "there-is-no-such-package" in error_of("bogus", environments)
    assert not (environments / "bogus").exists()
    python = python_of("empty", environments)
    assert python is not None
    assert python.exists()


def test_an_environment_is_kept_until_its_lock_changes(offline: Path, tmp_path: Path) -> None:
    environments = tmp_path / "environments"
    assert install.install("empty", locks=offline, environments=environments) is None
    mark = environments / "empty" / "mark"
    mark.touch()
    assert install.install("empty", locks=offline, environments=environments) is None
    assert mark.exists()
    (offline / "empty.txt").write_text(f"there-is-no-such-package==1.0 --hash=sha256:{_HASH}\n")
    assert install.install("empty", locks=offline, environments=environments) is not None
    assert python_of("empty", environments) is None


def test_a_peer_that_was_never_installed_says_so(tmp_path: Path) -> None:
    assert python_of("none", tmp_path) is None
    assert "make peers" in error_of("none", tmp_path)


def test_each_peer_has_a_lock_with_hashes_and_without_torch() -> None:
    assert set(peers()) == {model.peer for model in MODELS.values()} - {OURS}
    for peer in peers():
        text = (LOCKS / f"{peer}.txt").read_text(encoding="utf-8")
        pins = [line for line in text.splitlines() if "==" in line and not line.startswith(("#", " "))]
        assert pins
        assert all(line.endswith("\\") for line in pins)  # its hashes follow
        assert not any(line.startswith(("torch==", "nvidia-", "--index", "--extra-index")) for line in pins)
        assert "://" not in text.replace("https://docs", "")
