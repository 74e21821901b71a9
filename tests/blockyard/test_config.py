"""What may be said: the daemon's configuration, names, sizes, secrets; and the files that it owns."""

from __future__ import annotations

import json
import socket
import stat
from pathlib import Path

import pytest
from pydantic import ValidationError

from blockyard.config import ServeConfig
from blockyard.daemon.__main__ import main
from blockyard.daemon.api_server import ApiSocket
from blockyard.daemon.yard import _reachable_host
from blockyard.errors import ANSWERS, BY_CODE, EXIT_FINDINGS, Internal, Invalid, Locked, ProductError, error_from
from blockyard.model import ClientSpec, names


def config(**more: object) -> ServeConfig:
    basis = {"store": "/srv/store", "portals": ["127.0.0.1:3260"], "api": "unix:/run/api.sock"}
    return ServeConfig.model_validate_json(json.dumps(basis | more))


def test_portals_are_host_and_port() -> None:
    portals = config(portals=["127.0.0.1:3260", "[::1]:0", "yard.example.com:3261"]).portals
    assert [str(portal) for portal in portals] == ["127.0.0.1:3260", "[::1]:0", "yard.example.com:3261"]
    assert portals[1].host == "::1"


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("portals", ["127.0.0.1"], "is not HOST:PORT"),
        ("portals", ["::1:3260"], "IPv6 in brackets"),
        ("portals", ["127.0.0.1:70000"], "0 to 65535"),
        ("advertise", "host:0", "advertised port is 0"),
        ("workers", 0, "greater than or equal to 1"),
        ("api", "http://localhost", "unix:PATH"),
        ("api", "unix:/" + "x" * 120, "107"),
        ("pool_size", 5, "greater than"),
        ("ping_interval", 0.5, "1 to 300"),
        ("ping_timeout", 301, "1 to 300"),
        ("api_listen", "127.0.0.1:3261", "need each other"),
    ],
)
def test_wrong_configuration_is_named(field: str, value: object, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValidationError):
        config(**{field: value})
    basis = {"store": "/srv/store", "portals": ["127.0.0.1:3260"], "api": "unix:/run/api.sock"}
    assert main(json.dumps(basis | {field: value})) == ANSWERS[Invalid].exit_code
    assert said in capsys.readouterr().err


def test_a_wildcard_portal_is_told_as_an_address_of_this_machine() -> None:
    assert _reachable_host("192.0.2.1") == "192.0.2.1"
    assert _reachable_host("0.0.0.0") not in ("0.0.0.0", "")
    assert _reachable_host("::") not in ("::", "")


@pytest.mark.parametrize(
    ("text", "size"),
    [("4096", 4096), ("10G", 10 << 30), ("1.5T", 3 << 39), ("512 MiB", 512 << 20), ("1k", 1024), ("2GB", 2 << 30)],
)
def test_sizes_are_powers_of_1024(text: str, size: int) -> None:
    assert names.parse_size(text) == size


@pytest.mark.parametrize("text", ["", "G", "-1G", "1Q", "1.G", "ten"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a size"):
        names.parse_size(text)


def test_volume_sizes_are_rounded_up_and_bounded() -> None:
    assert names.volume_size(1) == 4096
    assert names.volume_size(256 << 40) == 256 << 40
    for size in (0, -1, (256 << 40) + 1):
        with pytest.raises(ValueError, match="256 TiB"):
            names.volume_size(size)


@pytest.mark.parametrize("name", ["db", "a", "web-1.example", "0", "x" * 63])
def test_group_names(name: str) -> None:
    assert names.group_name(name) == name


@pytest.mark.parametrize("name", ["", "Db", "a_b", "-a", "a-", "a:b", "a@b", "x" * 64, "ä", "a\n"])
def test_what_is_no_group_name(name: str) -> None:
    with pytest.raises(ValueError, match="is not a group name"):
        names.group_name(name)


@pytest.mark.parametrize("name", ["any", "iqn.1993-08.org.debian:01:AB_c", "eui.02004567A425678D", "naa." + "a" * 32])
def test_initiator_names(name: str) -> None:
    assert names.initiator(name) == name


@pytest.mark.parametrize("name", ["bob", "iqn.x", "iqn.1993-08.org.debian:a b", "eui.12", "iqn.2020-01.x:" + "y" * 220])
def test_what_is_no_initiator_name(name: str) -> None:
    with pytest.raises(ValueError, match=r"initiator name|223"):
        names.initiator(name)


@pytest.mark.parametrize("name", ["iqn.2026-13.io.x:a", "iqn.2026-01.io.x:A", "naa.1234", "iqn.2026-01.x:" + "y" * 220])
def test_what_is_no_target_name(name: str) -> None:
    with pytest.raises(ValueError, match=r"target name|223"):
        names.target_iqn(name)


def test_address_ranges_have_a_normal_form() -> None:
    assert ClientSpec(initiator="any", address="192.0.2.7").address == "192.0.2.7/32"
    assert ClientSpec(initiator="any", address="2001:db8::1/32").address == "2001:db8::/32"


def test_secrets_need_96_bits_and_are_not_in_the_repr() -> None:
    for secret in ("x" * 11, "x" * 256, "with\ttabulator1"):
        with pytest.raises(ValueError, match="CHAP secret"):
            names.chap_secret(secret)
    spec = ClientSpec.model_validate({"initiator": "any", "chap": {"user": "a", "secret": "correct horse 1234"}})
    assert "correct horse" not in repr(spec)


def test_every_error_has_one_answer() -> None:
    assert set(ANSWERS) == set(ProductError.__subclasses__())
    assert len(BY_CODE) == len(ANSWERS)
    codes = [answer.exit_code for answer in ANSWERS.values()]
    assert len(set(codes)) == len(codes)
    assert not {0, EXIT_FINDINGS} & set(codes)
    assert isinstance(error_from("from the future", "x"), Internal)


def test_the_api_socket_is_for_its_owner_and_goes_with_the_daemon(tmp_path: Path) -> None:
    path = tmp_path / "run" / "api.sock"
    made = ApiSocket(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    made.close()
    assert not path.exists()


def test_a_stale_api_socket_is_replaced_and_a_live_one_is_not(tmp_path: Path) -> None:
    path = tmp_path / "api.sock"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
    live = ApiSocket(path)
    with pytest.raises(Locked, match="another daemon"):
        ApiSocket(path)
    live.close()


def test_an_api_path_that_is_a_file_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "api.sock"
    path.write_text("precious")
    with pytest.raises(Invalid, match="no socket"):
        ApiSocket(path)
    assert path.read_text() == "precious"


def test_an_api_socket_that_somebody_replaced_is_not_removed(tmp_path: Path) -> None:
    path = tmp_path / "api.sock"
    first = ApiSocket(path)
    path.unlink()
    second = ApiSocket(path)
    first.close()
    assert path.exists()
    second.close()
