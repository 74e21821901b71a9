"""CHAP: known answers, both directions, and every way to fail."""

from __future__ import annotations

import base64
import hashlib
from typing import Any

import pytest

from pdus.iscsi.keys import parse_binary
from pdus.iscsi.login import LoginStatus, Stage
from target.iscsi.auth import ALGORITHMS, ChapCredentials, chap_response
from target.iscsi.login import LoginPolicy
from tests.target.iscsi.support import NAMES, Initiator

SECRET, OTHER = b"secret-of-16-byt", b"other-of-16-byte"
ONE_WAY = LoginPolicy(chap=ChapCredentials("user", SECRET))
MUTUAL = LoginPolicy(chap=ChapCredentials("user", SECRET, "target", OTHER))


@pytest.mark.parametrize(
    ("algorithm", "expected"),
    [
        (5, hashlib.md5(b"\x07abc\x01\x02").hexdigest()),
        (6, hashlib.sha1(b"\x07abc\x01\x02").hexdigest()),
        (7, hashlib.sha256(b"\x07abc\x01\x02").hexdigest()),
        (8, hashlib.sha3_256(b"\x07abc\x01\x02").hexdigest()),
    ],
)
def test_the_response_is_the_hash_of_identifier_secret_and_challenge(algorithm: int, expected: str) -> None:
    assert chap_response(algorithm, 7, b"abc", b"\x01\x02").hex() == expected


def test_known_answers() -> None:
    # Computed with coreutils: printf '\x01secretchallenge' | md5sum, sha1sum, sha256sum
    answers = {number: chap_response(number, 1, b"secret", b"challenge").hex() for number in ALGORITHMS}
    assert answers == KNOWN


KNOWN = {
    5: "46e47770030e2b4e26a0db72a7efec00",
    6: "011f25d29fe1baaced569c0d7e4878e40ddb7d7e",
    7: "2dfa0526f4764864b7c3c5bc6596bcead3d8dbd984f4fc1d9f330299f0beced4",
    8: "9444877c4dff778ed2add0f102dcd561e11944e7e948ee1b89508451a9e680ad",
}


def challenged(policy: LoginPolicy, algorithms: str = "7") -> tuple[Initiator, dict[str, str]]:
    initiator = Initiator()
    initiator.start([*NAMES, ("AuthMethod", "CHAP,None")], policy, stage=Stage.SECURITY, to=Stage.OPERATIONAL)
    response, keys = initiator.login_answer()
    assert keys["AuthMethod"] == "CHAP"
    assert not response.transit
    initiator.login_request([("CHAP_A", algorithms)], stage=Stage.SECURITY, to=None)
    return initiator, initiator.login_answer()[1]


def answer(keys: dict[str, str], secret: bytes = SECRET) -> bytes:
    return chap_response(int(keys["CHAP_A"]), int(keys["CHAP_I"]), secret, parse_binary(keys["CHAP_C"]))


def prove(initiator: Initiator, *pairs: tuple[str, str]) -> tuple[Any, dict[str, str]]:
    initiator.login_request(pairs, stage=Stage.SECURITY, to=Stage.OPERATIONAL)
    return initiator.login_answer()


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("form", ["hexadecimal", "base64"])
def test_the_right_secret_opens_the_next_stage(algorithm: int, form: str) -> None:
    initiator, keys = challenged(ONE_WAY, str(algorithm))
    proof = answer(keys)
    text = "0x" + proof.hex() if form == "hexadecimal" else "0b" + base64.b64encode(proof).decode()
    response, _ = prove(initiator, ("CHAP_N", "user"), ("CHAP_R", text))
    assert (response.status, response.transit) == (0, True)
    assert initiator.connection.auth == "chap"


def test_the_algorithm_is_the_first_of_the_list_that_we_know() -> None:
    _, keys = challenged(ONE_WAY, "99,8,5")
    assert keys["CHAP_A"] == "8"


def test_an_unknown_user_and_a_bad_secret_get_the_same_answer() -> None:
    answers = []
    for user, secret in (("nobody", SECRET), ("user", OTHER)):
        initiator, keys = challenged(ONE_WAY)
        response, said = prove(initiator, ("CHAP_N", user), ("CHAP_R", "0x" + answer(keys, secret).hex()))
        answers.append((response.encode(), said))
    assert answers[0] == answers[1]
    assert response.status == LoginStatus.AUTHENTICATION_FAILURE


def test_mutual_chap_proves_the_target() -> None:
    initiator, keys = challenged(MUTUAL)
    pairs = [("CHAP_N", "user"), ("CHAP_R", "0x" + answer(keys).hex()), ("CHAP_I", "9"), ("CHAP_C", "0xabcdef")]
    response, said = prove(initiator, *pairs)
    assert response.transit
    assert said["CHAP_N"] == "target"
    assert parse_binary(said["CHAP_R"]) == chap_response(7, 9, OTHER, b"\xab\xcd\xef")
    assert initiator.connection.auth == "mutual chap"


def test_a_reflected_challenge_is_refused() -> None:
    initiator, keys = challenged(MUTUAL)
    pairs = [("CHAP_N", "user"), ("CHAP_R", "0x" + answer(keys).hex()), ("CHAP_I", "9"), ("CHAP_C", keys["CHAP_C"])]
    assert prove(initiator, *pairs)[0].status == LoginStatus.AUTHENTICATION_FAILURE


def test_equal_secrets_in_both_directions_are_refused() -> None:
    policy = LoginPolicy(chap=ChapCredentials("user", SECRET, "target", SECRET))
    initiator, keys = challenged(policy)
    pairs = [("CHAP_N", "user"), ("CHAP_R", "0x" + answer(keys).hex()), ("CHAP_I", "9"), ("CHAP_C", "0xabcdef")]
    assert prove(initiator, *pairs)[0].status == LoginStatus.AUTHENTICATION_FAILURE


def test_mutual_chap_without_a_secret_of_ours_is_refused() -> None:
    initiator, keys = challenged(ONE_WAY)
    pairs = [("CHAP_N", "user"), ("CHAP_R", "0x" + answer(keys).hex()), ("CHAP_I", "9"), ("CHAP_C", "0xabcdef")]
    assert prove(initiator, *pairs)[0].status == LoginStatus.AUTHENTICATION_FAILURE


@pytest.mark.parametrize(
    ("pairs", "status"),
    [
        ([("CHAP_A", "5")], LoginStatus.INITIATOR_ERROR),
        ([("CHAP_N", "user")], LoginStatus.INITIATOR_ERROR),
        ([("CHAP_N", "user"), ("CHAP_R", "junk")], LoginStatus.INITIATOR_ERROR),
        ([("CHAP_I", "1"), ("CHAP_C", "0x01")], LoginStatus.INITIATOR_ERROR),
        ([], LoginStatus.AUTHENTICATION_FAILURE),
    ],
)
def test_steps_out_of_order_are_refused(pairs: Any, status: int) -> None:
    initiator, _ = challenged(ONE_WAY)
    assert prove(initiator, *pairs)[0].status == status


def test_no_algorithm_in_common_is_refused() -> None:
    initiator = Initiator()
    initiator.start([*NAMES, ("AuthMethod", "CHAP")], ONE_WAY, stage=Stage.SECURITY, to=None)
    initiator.login_answer()
    initiator.login_request([("CHAP_A", "1,2")], stage=Stage.SECURITY, to=None)
    assert initiator.login_answer()[0].status == LoginStatus.AUTHENTICATION_FAILURE


def test_a_secret_does_not_show_in_messages() -> None:
    assert "secret-of" not in repr(MUTUAL)
