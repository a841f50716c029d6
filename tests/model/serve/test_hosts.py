"""Which Host headers are answered."""

from __future__ import annotations

import pytest

from model.serve.hosts import AllowedHosts
from workflows.common.errors import UserError


def refusal(hosts: AllowedHosts, *values: bytes) -> int | None:
    return hosts.refusal([(b"accept", b"*/*"), *((b"host", value) for value in values)])


LOOPBACK = b"localhost LOCALHOST:8080 localhost. 127.0.0.1 127.0.0.1:1 127.8.9.1 [::1] [::1]:8080 [0:0:0:0:0:0:0:1]:"
OTHERS = b"evil.example localhost.evil.example 10.0.0.1 192.0.2.7:8080 [2001:db8::2] 2130706433 127.1 0.0.0.0"
INVALID = b"|a b|localhost, evil.example|evil@localhost|::1|[::1|[localhost]|localhost:x|http://localhost|\xff|.|*"


@pytest.mark.parametrize(
    ("own", "others", "allowed", "refused"),
    [
        ("127.0.0.1", [], LOOPBACK, OTHERS),
        ("0.0.0.0", [], LOOPBACK + b" 0.0.0.0:8080", b"10.0.0.1 evil.example"),
        ("2001:db8:0::2", [], LOOPBACK + b" [2001:db8::2]:80", b"[2001:db8::3] evil.example"),
        ("Box.example", ["WWW.Example.org", "2001:db8::9"], b"box.example:1 www.example.org. [2001:DB8::9]", OTHERS),
        ("127.0.0.1", ["10.0.0.1:443", "[::2]"], LOOPBACK + b" 10.0.0.1 10.0.0.1:8 [::2]:8", b"evil.example 10.0.0.2"),
        ("127.0.0.1", ["www.example.org", "*"], LOOPBACK + b" " + OTHERS, b""),
        ("", [], LOOPBACK, OTHERS),
    ],
)
def test_hosts_are_compared_by_name_without_port(own: str, others: list[str], allowed: bytes, refused: bytes) -> None:
    hosts = AllowedHosts(own, others)
    assert {host: refusal(hosts, host) for host in allowed.split()} == dict.fromkeys(allowed.split())
    assert {host: refusal(hosts, host) for host in refused.split()} == dict.fromkeys(refused.split(), 421)


def test_a_request_has_one_valid_host() -> None:
    hosts = AllowedHosts("127.0.0.1")
    assert {host: refusal(hosts, host) for host in INVALID.split(b"|")} == dict.fromkeys(INVALID.split(b"|"), 400)
    assert refusal(hosts) == 400
    assert refusal(hosts, b"localhost", b"localhost") == 400
    assert refusal(AllowedHosts("127.0.0.1", ["*"])) is None


@pytest.mark.parametrize("name", ["", "http://www.example.org", "a b", "*.example.org", "a/b", "[x]"])
def test_invalid_names_are_refused(name: str) -> None:
    with pytest.raises(UserError, match="--allowed-hosts"):
        AllowedHosts("127.0.0.1", ["localhost", name])
