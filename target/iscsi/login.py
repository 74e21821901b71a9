"""The login phase of one connection, the target's side (RFC 7143 6.3, 11.12, 11.13).

Stages and text; the keys' meaning is ``negotiation``'s, the proof ``auth``'s, the wire ``connection``'s. Every step
returns what to do next, nothing is called back. Invariant: full feature phase is only asked for after the security
that the policy demands was given.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pdus.errors import FormatError
from pdus.iscsi.keys import KEYS, MAX_ISCSI_NAME, REJECT, Use, parse_list
from pdus.iscsi.login import LoginRequest, LoginStatus, Stage
from pdus.iscsi.text import encode_pairs, parse_pairs
from target.iscsi.auth import ChapAuthenticator, ChapCredentials
from target.iscsi.errors import (
    AuthenticationFailed,
    InitiatorError,
    LoginRefused,
    MissingParameter,
    UnsupportedVersion,
)
from target.iscsi.events import LoginStarted, SessionRequested
from target.iscsi.negotiation import LOGIN_MAX_SEGMENT, Negotiation, Pairs
from target.iscsi.settings import PORTAL_GROUP_TAG, Settings

MAX_TEXT = 65536
"""Bytes of one request's text over all its parts (C bit); guessed, eight whole login PDUs."""

TRANSITIONS: dict[tuple[int, int | None], Stage] = {
    (Stage.SECURITY, None): Stage.SECURITY,
    (Stage.SECURITY, Stage.OPERATIONAL): Stage.OPERATIONAL,
    (Stage.SECURITY, Stage.FULL_FEATURE): Stage.FULL_FEATURE,
    (Stage.OPERATIONAL, None): Stage.OPERATIONAL,
    (Stage.OPERATIONAL, Stage.FULL_FEATURE): Stage.FULL_FEATURE,
}
"""(CSG, NSG if the T bit is set) -> the stage that the initiator wants next. What is not here is a protocol error."""


@dataclass(frozen=True, slots=True)
class LoginPolicy:
    """What the owner demands of this login. ``chap`` None: nothing to prove."""

    chap: ChapCredentials | None = None
    portal_group_tag: int = PORTAL_GROUP_TAG
    target_alias: str | None = None


@dataclass(frozen=True, slots=True)
class Reply:
    """One Login Response: its stage bits and text."""

    current_stage: int
    text: bytes = b""
    transit: bool = False
    next_stage: int = 0
    continues: bool = False


Step = Reply | LoginStarted | SessionRequested


class Login:
    """One login in progress. All methods may raise LoginRefused."""

    def __init__(self, settings: Settings, random_bytes: Callable[[int], bytes]) -> None:
        self.negotiation = Negotiation(settings)
        self.first: LoginRequest | None = None
        self.task_tag = 0
        """Of the request that is being answered: the first one's, unless the initiator breaks RFC 7143 11.12."""
        self.auth = "none"
        self._random_bytes = random_bytes
        self._identity: LoginStarted | None = None
        self._policy: LoginPolicy | None = None
        self._chap: ChapAuthenticator | None = None
        self._secured = False
        self._stage = Stage.SECURITY
        self._wanted = Stage.SECURITY
        self._question = bytearray()
        self._offered: Pairs = []
        self._answer = b""
        self._answering = False

    @property
    def identity(self) -> LoginStarted:
        assert self._identity is not None
        return self._identity

    def receive(self, request: LoginRequest, data: bytes) -> Step:
        """Take one Login Request."""
        self.task_tag = request.initiator_task_tag
        self._check(request)
        if self._answering:
            if data:
                raise InitiatorError("keys sent while our answer's next part was awaited")
            return self._next_part()
        self._question += data
        if len(self._question) > MAX_TEXT:
            raise InitiatorError(f"login text exceeds {MAX_TEXT} bytes")
        if request.continue_:
            return Reply(self._stage)
        text, self._question = bytes(self._question), bytearray()
        try:
            self._offered = parse_pairs(text)
        except FormatError as error:
            raise InitiatorError(str(error)) from None
        self._wanted = TRANSITIONS[request.current_stage, request.next_stage if request.transit else None]
        if self._identity is None:
            self._identity = self._identify(request)
            return self._identity
        return self._negotiate()

    def accept(self, policy: LoginPolicy) -> Step:
        """Go on after LoginStarted."""
        assert self._policy is None, "a login is accepted once"
        self._policy = policy
        self._secured = policy.chap is None
        first: Pairs = []
        if self.identity.target_name is not None:
            # RFC 7143 13.9: in the first response to a request that names a target
            first.append(("TargetPortalGroupTag", str(policy.portal_group_tag)))
        if policy.target_alias is not None:
            first.append(("TargetAlias", policy.target_alias))
        return self._negotiate(first)

    def complete(self) -> Reply:
        """The last response: the owner has established the session."""
        return self._final_part()

    # --- one request -----------------------------------------------------------------------------------------------

    def _check(self, request: LoginRequest) -> None:
        if request.transit and request.continue_:
            raise InitiatorError("T and C bits are both set")
        if request.version_min > 0:
            raise UnsupportedVersion(f"initiator needs version {request.version_min}, allowed is 0")
        transition = (request.current_stage, request.next_stage if request.transit else None)
        if transition not in TRANSITIONS:
            raise InitiatorError(f"no transition from stage {request.current_stage} to {request.next_stage}")
        first = self.first
        if first is None:
            self.first = request
            self._stage = Stage(request.current_stage)
            return
        # RFC 7143 11.12 wants ISID and task tag unchanged too. Initiators exist that draw a new ISID for each request,
        # and the kernel target lets them in: the first request's identity counts, whatever the later ones say.
        if (request.cid, request.tsih) != (first.cid, first.tsih):
            raise InitiatorError("CID or TSIH changed during the login")
        if request.current_stage != self._stage:
            raise InitiatorError(f"request is in stage {request.current_stage}, the login in {int(self._stage)}")

    def _identify(self, request: LoginRequest) -> LoginStarted:
        said = dict(self._offered)
        initiator, target = said.get("InitiatorName"), said.get("TargetName")
        session_type = said.get("SessionType", "Normal")
        if not initiator:
            raise MissingParameter("InitiatorName is missing")
        if session_type not in KEYS["SessionType"].values:
            raise InitiatorError(f"SessionType={session_type}: allowed are Normal and Discovery")
        if session_type == "Normal" and not target:
            raise MissingParameter("TargetName is missing")
        if max(len(initiator.encode()), len((target or "").encode())) > MAX_ISCSI_NAME:
            raise InitiatorError(f"an iSCSI name exceeds {MAX_ISCSI_NAME} bytes")
        if request.tsih != 0:
            # One connection a session, and at ErrorRecoveryLevel 0 none to take over: nothing can be joined
            raise LoginRefused(f"TSIH {request.tsih} cannot be joined", LoginStatus.SESSION_DOES_NOT_EXIST)
        return LoginStarted(
            initiator, said.get("InitiatorAlias", ""), session_type, target, request.isid, request.tsih, request.cid
        )

    def _negotiate(self, answers: Pairs | None = None) -> Step:
        answers = answers or []
        security = [pair for pair in self._offered if _is_security(pair[0])]
        operational = [pair for pair in self._offered if not _is_security(pair[0])]
        if security and self._stage is not Stage.SECURITY:
            raise InitiatorError(f"{security[0][0]} outside of the security stage")
        if self._stage is Stage.SECURITY:
            answers += self._secure(security)
        elif not self._secured:
            raise AuthenticationFailed("the security stage was left out, but this target demands CHAP")
        # Operational keys in the security stage are out of place but harmless; older initiators send them
        answers += self.negotiation.answer(operational, discovery=self.identity.session_type == "Discovery")
        if self._stage is Stage.OPERATIONAL:
            answers += self.negotiation.declarations()
        self._answer = encode_pairs(answers)
        return self._next_part()

    # --- security --------------------------------------------------------------------------------------------------

    def _secure(self, offered: Pairs) -> Pairs:
        said: dict[str, str] = {}
        for name, value in offered:
            if name in said:
                raise InitiatorError(f"{name} sent more than once")
            said[name] = value
        answers: Pairs = []
        if "AuthMethod" in said:
            answers.append(("AuthMethod", self._choose_method(said.pop("AuthMethod"))))
        if said:
            answers += self._prove(said)
        elif not answers and not self._secured and self._wanted is not Stage.SECURITY:
            raise AuthenticationFailed("the initiator wants to leave the security stage without proof")
        return answers

    def _choose_method(self, offered: str) -> str:
        assert self._policy is not None
        self.negotiation.settle_once("AuthMethod", offered)
        try:
            methods = parse_list(offered)
        except FormatError as error:
            raise InitiatorError(f"AuthMethod: {error}") from None
        wanted = "None" if self._policy.chap is None else "CHAP"
        if wanted not in methods:
            raise AuthenticationFailed(f"AuthMethod={offered}: this target demands {wanted}")
        if self._policy.chap is not None:
            self._chap = ChapAuthenticator(self._policy.chap, self._random_bytes)
        return wanted

    def _prove(self, said: dict[str, str]) -> Pairs:
        if self._chap is None:
            if self._secured:
                return [(name, REJECT) for name in said]
            raise AuthenticationFailed("CHAP keys before AuthMethod was negotiated")
        answers = self._chap.answer(said)
        self._secured = self._chap.done
        if self._secured:
            self.auth = "mutual chap" if self._chap.mutual else "chap"
        return answers

    # --- answers ---------------------------------------------------------------------------------------------------

    def _next_part(self) -> Step:
        if len(self._answer) > LOGIN_MAX_SEGMENT:
            part, self._answer = self._answer[:LOGIN_MAX_SEGMENT], self._answer[LOGIN_MAX_SEGMENT:]
            self._answering = True
            return Reply(self._stage, part, continues=True)
        if self._secured and self._wanted is Stage.FULL_FEATURE:
            return SessionRequested(self.identity)
        return self._final_part()

    def _final_part(self) -> Reply:
        text, self._answer = self._answer, b""
        self._answering = False
        stage = self._stage
        if not self._secured or self._wanted is stage:
            return Reply(stage, text)
        self._stage = self._wanted
        return Reply(stage, text, transit=True, next_stage=self._wanted)


def _is_security(name: str) -> bool:
    key = KEYS.get(name)
    return key is not None and key.use is Use.SECURITY_ONLY
