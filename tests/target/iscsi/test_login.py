"""The login phase: stages, keys, C bit, refusals."""

from __future__ import annotations

from typing import Any

import pytest

from pdus.iscsi.login import LoginRequest, LoginResponse, LoginStatus, Stage
from pdus.iscsi.text import TextRequest, encode_pairs, parse_pairs
from target.iscsi.auth import ChapCredentials
from target.iscsi.events import LoginStarted, SessionRequested
from target.iscsi.login import LoginPolicy
from target.iscsi.settings import Settings
from tests.target.iscsi.support import DISCOVERY, INITIATOR, NAMES, TARGET, Initiator

SECURITY, OPERATIONAL, FULL = Stage.SECURITY, Stage.OPERATIONAL, Stage.FULL_FEATURE


def refused(initiator: Initiator) -> int:
    """The status that the login ended with."""
    response, _ = initiator.login_answer()
    assert initiator.connection.closing
    return int(response.status)


def test_straight_into_operational_stage_and_full_feature_phase() -> None:
    initiator = Initiator()
    keys = initiator.log_in()
    assert keys["TargetPortalGroupTag"] == "1"
    assert keys["MaxRecvDataSegmentLength"] == "262144"
    session = initiator.connection.session
    assert session is not None
    assert session.tsih == 7


def test_security_then_operational_then_full_feature() -> None:
    initiator = Initiator()
    initiator.start([*NAMES, ("AuthMethod", "CHAP,None")], stage=SECURITY, to=OPERATIONAL)
    response, keys = initiator.login_answer()
    assert (response.transit, response.current_stage, response.next_stage) == (True, SECURITY, OPERATIONAL)
    assert keys == {"TargetPortalGroupTag": "1", "AuthMethod": "None"}
    initiator.login_request([("InitialR2T", "No")])
    response, keys = initiator.establish()
    assert keys == {"InitialR2T": "No", "MaxRecvDataSegmentLength": "262144"}
    assert (response.transit, response.next_stage, response.tsih) == (True, FULL, 7)


def test_security_straight_to_full_feature() -> None:
    initiator = Initiator()
    initiator.start([*NAMES, ("AuthMethod", "None")], stage=SECURITY, to=FULL)
    response, keys = initiator.establish()
    assert (response.current_stage, response.next_stage) == (SECURITY, FULL)
    assert "MaxRecvDataSegmentLength" not in keys


def test_a_stage_may_take_several_requests() -> None:
    initiator = Initiator()
    initiator.start(NAMES, to=None)
    response, _ = initiator.login_answer()
    assert not response.transit
    initiator.login_request([("MaxBurstLength", "65536")], to=None)
    response, keys = initiator.login_answer()
    assert keys == {"MaxBurstLength": "65536"}
    initiator.login_request()
    assert initiator.establish()[0].transit


@pytest.mark.parametrize(
    ("stage", "to"),
    [(SECURITY, SECURITY), (SECURITY, 2), (OPERATIONAL, SECURITY), (OPERATIONAL, OPERATIONAL), (2, FULL), (3, 3)],
)
def test_a_transition_that_is_not_in_the_table_is_refused(stage: int, to: int) -> None:
    initiator = Initiator()
    initiator.login_request(NAMES, stage=stage, to=to)
    assert refused(initiator) == LoginStatus.INITIATOR_ERROR


def test_going_back_to_the_security_stage_is_refused() -> None:
    initiator = Initiator()
    initiator.start(NAMES, to=None)
    initiator.login_answer()
    initiator.login_request(stage=SECURITY, to=None)
    assert refused(initiator) == LoginStatus.INITIATOR_ERROR


@pytest.mark.parametrize(
    ("pairs", "status"),
    [
        ([("TargetName", TARGET)], LoginStatus.MISSING_PARAMETER),
        ([("InitiatorName", INITIATOR)], LoginStatus.MISSING_PARAMETER),
        ([*NAMES, ("SessionType", "Other")], LoginStatus.INITIATOR_ERROR),
        ([("InitiatorName", "i" * 224), ("TargetName", TARGET)], LoginStatus.INITIATOR_ERROR),
    ],
)
def test_the_first_request_must_say_who_and_where(pairs: Any, status: int) -> None:
    initiator = Initiator()
    initiator.login_request(pairs)
    assert refused(initiator) == status


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({"version_min": 1}, LoginStatus.UNSUPPORTED_VERSION),
        ({"tsih": 5}, LoginStatus.SESSION_DOES_NOT_EXIST),
        ({"continues": True}, LoginStatus.INITIATOR_ERROR),
    ],
)
def test_headers_that_cannot_be_served_are_refused(fields: dict[str, Any], status: int) -> None:
    initiator = Initiator()
    initiator.login_request(NAMES, **fields)
    assert refused(initiator) == status


def test_the_first_request_says_whose_login_it_is() -> None:
    """The load generator that we compare targets with draws another ISID for every request."""
    initiator = Initiator()
    initiator.start(NAMES, to=None)
    initiator.login_answer()
    initiator.login_request(isid=bytes(6), initiator_task_tag=9)
    assert initiator.connection.failed is None
    response, _ = initiator.establish()
    assert response.transit
    assert response.initiator_task_tag == 9


@pytest.mark.parametrize("fields", [{"cid": 9}, {"tsih": 1}])
def test_the_login_keeps_its_tags(fields: dict[str, Any]) -> None:
    initiator = Initiator()
    initiator.start(NAMES, to=None)
    initiator.login_answer()
    initiator.login_request(**fields)
    assert refused(initiator) == LoginStatus.INITIATOR_ERROR


@pytest.mark.parametrize(
    "pairs",
    [
        [("MaxBurstLength", "512"), ("MaxBurstLength", "1024")],
        [("TargetAlias", "ours")],
        [("MaxRecvDataSegmentLength", "511")],
        [("lower", "case")],
        [("AuthMethod", "None")],
        [("X" * 60, "v" * 256)],
    ],
)
def test_keys_that_break_the_rules_end_the_login(pairs: Any) -> None:
    initiator = Initiator()
    initiator.start([*NAMES, *pairs])
    assert refused(initiator) == LoginStatus.INITIATOR_ERROR


def test_a_key_said_again_in_a_later_request_ends_the_login() -> None:
    initiator = Initiator()
    initiator.start([*NAMES, ("ImmediateData", "Yes")], to=None)
    initiator.login_answer()
    initiator.login_request([("ImmediateData", "Yes")])
    assert refused(initiator) == LoginStatus.INITIATOR_ERROR


def test_the_offer_of_linux_is_answered_key_by_key() -> None:
    offered = [
        ("HeaderDigest", "None"),
        ("DataDigest", "CRC32C,None"),
        ("DefaultTime2Wait", "2"),
        ("DefaultTime2Retain", "20"),
        ("IFMarker", "No"),
        ("OFMarker", "No"),
        ("ErrorRecoveryLevel", "2"),
        ("InitialR2T", "No"),
        ("ImmediateData", "Yes"),
        ("MaxBurstLength", "16776192"),
        ("FirstBurstLength", "262144"),
        ("MaxOutstandingR2T", "1"),
        ("MaxConnections", "8"),
        ("DataPDUInOrder", "No"),
        ("DataSequenceInOrder", "No"),
        ("TaskReporting", "FastAbort,RFC3720"),
        ("iSCSIProtocolLevel", "2"),
        ("X-org.example.new", "1"),
        ("OFMarkInt", "1~2"),
        ("MaxRecvDataSegmentLength", "262144"),
    ]
    keys = Initiator().log_in(*offered)
    del keys["TargetPortalGroupTag"]
    assert keys == {
        "HeaderDigest": "None",
        "DataDigest": "CRC32C",
        "DefaultTime2Wait": "2",
        "DefaultTime2Retain": "0",
        "IFMarker": "Reject",
        "OFMarker": "Reject",
        "ErrorRecoveryLevel": "0",
        "InitialR2T": "No",
        "ImmediateData": "Yes",
        "MaxBurstLength": "1048576",
        "FirstBurstLength": "262144",
        "MaxOutstandingR2T": "1",
        "MaxConnections": "1",
        "DataPDUInOrder": "Yes",
        "DataSequenceInOrder": "Yes",
        "TaskReporting": "RFC3720",
        "iSCSIProtocolLevel": "1",
        "X-org.example.new": "NotUnderstood",
        "OFMarkInt": "Reject",
        "MaxRecvDataSegmentLength": "262144",
    }


def test_first_burst_never_exceeds_max_burst_whatever_the_order() -> None:
    keys = Initiator().log_in(("FirstBurstLength", "65536"), ("MaxBurstLength", "4096"))
    assert (keys["FirstBurstLength"], keys["MaxBurstLength"]) == ("4096", "4096")


def test_first_burst_is_irrelevant_without_unsolicited_data() -> None:
    keys = Initiator().log_in(("FirstBurstLength", "65536"), ("InitialR2T", "Yes"), ("ImmediateData", "No"))
    assert keys["FirstBurstLength"] == "Irrelevant"


def test_a_number_out_of_range_is_rejected_and_the_default_stays() -> None:
    initiator = Initiator()
    assert initiator.log_in(("MaxOutstandingR2T", "0"))["MaxOutstandingR2T"] == "Reject"
    session = initiator.connection.session
    assert session is not None
    assert session.parameters.max_outstanding_r2t == 1


def test_burst_keys_are_irrelevant_for_discovery() -> None:
    keys = Initiator().log_in(("MaxBurstLength", "512"), names=DISCOVERY)
    assert keys["MaxBurstLength"] == "Irrelevant"
    assert "TargetPortalGroupTag" not in keys


def test_keys_may_be_spread_over_several_requests() -> None:
    text = encode_pairs([*NAMES, ("MaxBurstLength", "65536")])
    initiator = Initiator()
    for cut, part in enumerate((text[:20], text[20:60])):
        initiator.send(_part(initiator, cut), part)
        response, keys = initiator.login_answer()
        assert (response.transit, response.continue_, keys) == (False, False, {})
    last = _part(initiator, 2)
    last.transit, last.continue_, last.next_stage = True, False, FULL
    initiator.send(last, text[60:])
    assert isinstance(initiator.event(), LoginStarted)
    initiator.connection.accept_login(LoginPolicy())
    initiator.collect()
    assert initiator.establish()[1]["MaxBurstLength"] == "65536"


def _part(initiator: Initiator, number: int) -> Any:
    return LoginRequest(
        continue_=True, current_stage=OPERATIONAL, isid=bytes([0x80, 0, 0, 0, 0, 1]), cmd_sn=initiator.cmd_sn
    )


def test_an_answer_longer_than_a_login_pdu_comes_in_parts() -> None:
    unknown = [(f"X-{number:04}", "v") for number in range(600)]
    initiator = Initiator()
    initiator.start([*NAMES, *unknown])
    text = b""
    for _ in range(10):
        pdu, data = initiator.answer()
        assert isinstance(pdu, LoginResponse)
        text += data
        assert len(data) <= 8192
        if not pdu.continue_:
            break
        assert not pdu.transit
        initiator.login_request()
        if initiator.connection.events:
            assert isinstance(initiator.event(), SessionRequested)
            initiator.connection.establish(7)
            initiator.collect()
    assert pdu.transit
    answers = dict(parse_pairs(text))
    assert all(answers[name] == "NotUnderstood" for name, _ in unknown)


def test_login_text_without_end_is_refused() -> None:
    initiator = Initiator()
    for number in range(9):
        initiator.send(_part(initiator, number), b"x" * 8192)
    assert initiator.answers[-1][0].status == LoginStatus.INITIATOR_ERROR
    assert initiator.connection.closing


def test_another_request_during_login_is_invalid() -> None:
    initiator = Initiator()
    initiator.start(NAMES, to=None)
    initiator.login_answer()
    initiator.send(TextRequest(cmd_sn=1))
    assert refused(initiator) == LoginStatus.INVALID_DURING_LOGIN


def test_a_connection_that_begins_with_something_else_is_dropped() -> None:
    initiator = Initiator()
    initiator.send(TextRequest(cmd_sn=1))
    assert initiator.connection.failed == "the first PDU is no Login Request"
    assert not initiator.answers


def test_the_owner_may_refuse() -> None:
    initiator = Initiator()
    initiator.login_request(NAMES)
    initiator.event()
    initiator.connection.refuse_login(LoginStatus.NOT_FOUND)
    initiator.collect()
    assert refused(initiator) == LoginStatus.NOT_FOUND


def test_a_login_has_a_deadline() -> None:
    initiator = Initiator(Settings(login_deadline=10.0))
    initiator.login_request(NAMES)
    initiator.connection.tick(initiator.now + 9.9)
    assert initiator.connection.failed is None
    initiator.connection.tick(initiator.now + 10.0)
    assert initiator.connection.failed == "login not complete after 10 s"


def test_security_may_not_be_left_out_when_chap_is_demanded() -> None:
    policy = LoginPolicy(chap=ChapCredentials("user", b"secret-of-16-byt"))
    for request in (
        {"pairs": NAMES},
        {"pairs": NAMES, "stage": SECURITY, "to": OPERATIONAL},
        {"pairs": [*NAMES, ("AuthMethod", "None")], "stage": SECURITY, "to": OPERATIONAL},
    ):
        initiator = Initiator()
        initiator.start(policy=policy, **request)
        assert refused(initiator) == LoginStatus.AUTHENTICATION_FAILURE


def test_login_does_not_consume_its_cmd_sn_and_stat_sn_counts_up() -> None:
    initiator = Initiator(cmd_sn=0xFFFFFFFF, stat_sn=0xFFFFFFFF)
    initiator.start(NAMES, to=None)
    first, _ = initiator.login_answer()
    initiator.login_request()
    last, _ = initiator.establish()
    assert (first.stat_sn, last.stat_sn) == (0xFFFFFFFF, 0)
    assert (last.exp_cmd_sn, last.max_cmd_sn) == (0xFFFFFFFF, 0xFE)


def test_a_peer_that_sends_on_while_it_must_wait_is_bounded() -> None:
    initiator = Initiator()
    initiator.login_request(NAMES)
    initiator.send_raw(bytes(100_000))
    assert "sent while nothing could be taken" in str(initiator.connection.failed)


def test_the_same_bytes_give_the_same_answers_again() -> None:
    # The worker's connection reads what the front door has read, and skips what that has answered
    outputs = []
    for _ in range(2):
        initiator = Initiator()
        initiator.send(_part(initiator, 0), encode_pairs(NAMES[:1]))
        outputs.append([(pdu.encode(), data) for pdu, data in initiator.answers])
    assert outputs[0] == outputs[1]
