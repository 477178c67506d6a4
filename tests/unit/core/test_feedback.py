"""What Envoy's log says of attempts becomes one verdict each, and closes the request's record."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from extproc.core import open_requests
from extproc.core.feedback import AttemptLogged, RequestLogged, attempt_logged, request_logged
from extproc.core.gateway import Gateway
from extproc.core.health import Success
from extproc.core.open_requests import RECORD_MAX_AGE_S
from extproc.core.outcome import ErrorClass, Failure
from extproc.core.request_state import RequestState
from extproc.core.telling import class_of
from tests.unit.core.build import NOW, REQUEST_ID, A, B, chain, config, gateway, routed

# Every failure trips at once, so that its class can be read off the target's health.
ONE_STRIKE: dict[str, Any] = {"cooldown": {"consecutive": 1}}
BIG: dict[str, Any] = {"big": chain(A, B)}


def logged(
    *flags: str, status: int = 0, cluster: str = "a-cluster", first_byte_s: float | None = None, **more: Any
) -> Any:
    """Build Envoy's entry of one attempt."""
    return AttemptLogged(REQUEST_ID, cluster, status, frozenset(flags), first_byte_s, 1.0, **more)


def ended(status: int = 200, attempts: int = 1, last: AttemptLogged | None = None, **more: Any) -> RequestLogged:
    """Build Envoy's entry of a request."""
    return RequestLogged(REQUEST_ID, status, frozenset(), attempts, last=last, **more)


def reason_after(event: AttemptLogged, *, held: bool = False) -> str | None:
    """Return why the first target is out of service after an entry, None when it is not."""
    made = gateway(config(BIG, ONE_STRIKE))
    made.requests.attempt_held(routed(made), held=held)
    attempt_logged(made, event, NOW + 1)
    view = made.health.view(A, NOW + 1)
    return None if view.eligible else view.reason


def failed_over(made: Gateway) -> RequestState:
    """Let the first attempt fail with an answer and the second begin."""
    state = routed(made)
    made.requests.attempt_failed(state, Failure(ErrorClass.RATE_LIMITED, 429), NOW + 0.5)
    second = state.failed(ErrorClass.RATE_LIMITED, None).opened(2, NOW + 0.6, ("rate_limited",))
    made.requests.open_attempt(second, NOW + 0.6)
    return second


class TestTheVerdict:
    @pytest.mark.parametrize(
        ("flag", "silent", "begun"),
        [
            ("upstream_request_timeout", "timeout", "stream_stall"),
            ("stream_idle_timeout", "timeout", "stream_stall"),
            ("upstream_max_stream_duration_reached", "timeout", "stream_stall"),
            ("upstream_remote_reset", "connection", "stream_cut"),
            ("upstream_connection_termination", "connection", "stream_cut"),
            ("upstream_protocol_error", "connection", "stream_cut"),
            ("upstream_connection_failure", "connection", "connection"),
            ("no_healthy_upstream", "connection", "connection"),
            ("no_cluster_found", "connection", "connection"),
            ("dns_resolution_failure", "connection", "connection"),
            ("downstream_connection_termination", None, None),
            ("downstream_remote_reset", None, None),
            ("upstream_overflow", None, None),
        ],
    )
    def test_of_each_flag_depends_on_whether_the_answer_had_begun(
        self, flag: str, silent: str | None, begun: str | None
    ) -> None:
        found = reason_after(logged(flag)), reason_after(logged(flag, status=200, first_byte_s=0.1))
        assert (silent, begun) == found

    @pytest.mark.parametrize(
        ("flag", "expected"), [("upstream_request_timeout", "timeout"), ("upstream_remote_reset", "connection")]
    )
    def test_of_an_answer_that_was_held_back_is_that_of_none(self, flag: str, expected: str) -> None:
        """The caller saw nothing of it."""
        assert expected == reason_after(logged(flag, status=200, first_byte_s=0.1), held=True)

    def test_of_a_caller_who_left_wins_over_every_other_flag(self) -> None:
        assert reason_after(logged("downstream_connection_termination", "upstream_remote_reset")) is None

    def test_of_an_answered_failure_is_left_to_the_judge(self) -> None:
        assert reason_after(logged(status=500, first_byte_s=0.1)) is None

    def test_of_a_success_ends_a_row_of_failures(self) -> None:
        made = gateway(config(BIG, {"cooldown": {"consecutive": 2}}))
        for _ in range(2):
            routed(made)
            attempt_logged(made, logged("upstream_remote_reset"), NOW + 1)
            routed(made)
            request_logged(made, ended(last=logged(status=200, first_byte_s=0.1)), NOW + 1)
        assert made.health.view(A, NOW + 1).eligible


class TestMatching:
    def test_goes_by_order(self) -> None:
        made = gateway(config(BIG, ONE_STRIKE))
        failed_over(made)
        attempt_logged(made, logged(status=429, first_byte_s=0.1), NOW + 1)
        attempt_logged(made, logged("upstream_connection_failure", cluster="b-cluster"), NOW + 1)
        reasons = [made.health.view(key, NOW + 1).reason for key in (A, B)]
        assert ["rate_limited", "connection"] == reasons

    def test_never_charges_an_attempt_at_another_cluster(self) -> None:
        made = gateway(config(BIG, ONE_STRIKE))
        routed(made)
        attempt_logged(made, logged("upstream_remote_reset", cluster="b-cluster"), NOW + 1)
        assert (True, True) == tuple(made.health.view(key, NOW + 1).eligible for key in (A, B))

    def test_ignores_an_attempt_that_was_refused_before_it_began(self) -> None:
        made = gateway(config({"big": chain(A)}, ONE_STRIKE))
        routed(made)
        attempt_logged(made, logged("upstream_request_timeout"), NOW + 1)
        attempt_logged(made, logged(cluster="gateway-end", status=504), NOW + 1)
        assert "timeout" == made.health.view(A, NOW + 1).reason

    def test_ignores_requests_that_nobody_here_knows(self) -> None:
        made = gateway(config(BIG))
        attempt_logged(made, logged(), NOW)
        request_logged(made, RequestLogged(REQUEST_ID, 200, frozenset(), 1), NOW)
        assert {} == dict(made.requests.by_id)

    @pytest.mark.parametrize("attempt_first", [False, True])
    def test_takes_out_an_account_whose_address_was_refused_whichever_entry_comes_first(
        self, attempt_first: bool
    ) -> None:
        made = gateway(config(BIG, {"cooldown": {"max": "100s"}}))
        routed(made)
        if attempt_first:
            attempt_logged(made, logged(), NOW + 1)
        request_logged(made, RequestLogged(REQUEST_ID, 502, frozenset(), 1, address_denied=True), NOW + 1)
        if not attempt_first:
            attempt_logged(made, logged(), NOW + 1)
        view = made.health.view(A, NOW + 1)
        assert (False, "connection", NOW + 101) == (view.eligible, view.reason, view.until)
        assert {} == made.requests.by_id

    @pytest.mark.parametrize(
        ("event", "held", "expected"),
        [
            (ended(504, out_of_time=True), False, ("timeout", False)),
            (ended(504, out_of_time=True, answer_began=True), True, ("timeout", False)),
            (ended(504, out_of_time=True, answer_began=True), False, ("stream_cut", True)),
            (ended(200, out_of_time=True, answer_began=True, last=logged(status=200)), False, ("stream_cut", True)),
        ],
        ids=["silent", "held", "half a unary answer", "flowing"],
    )
    def test_charges_the_end_of_a_request_s_time_to_a_silent_target_only(
        self, event: RequestLogged, held: bool, expected: tuple[str, bool]
    ) -> None:
        """What was flowing was a good answer: nobody's fault, and no success either."""
        made = gateway(config(BIG, ONE_STRIKE))
        state = routed(made)
        made.requests.attempt_held(state, held=held)
        record = made.requests.by_id[REQUEST_ID]
        request_logged(made, event, NOW + 1)
        (attempt,) = record.attempts
        assert expected == (class_of(attempt), made.health.view(A, NOW + 1).eligible)

    def test_charges_nobody_with_an_answer_that_is_too_large_to_hold(self) -> None:
        """To Envoy it was a good one so far: the attempt has no entry of its own."""
        made = gateway(config(BIG, ONE_STRIKE))
        routed(made)
        record = made.requests.by_id[REQUEST_ID]
        request_logged(made, ended(502, too_large=True, answer_began=True), NOW + 1)
        assert [("bad_answer", True)] == [
            (class_of(one), made.health.view(A, NOW + 1).eligible) for one in record.attempts
        ]
        assert {} == made.requests.by_id

    def test_never_calls_the_end_of_a_request_s_time_a_caller_who_left(self) -> None:
        """Envoy's entry of the attempt looks the same, whichever comes first."""
        made = gateway(config(BIG))
        routed(made)
        record = made.requests.by_id[REQUEST_ID]
        attempt_logged(made, logged(), NOW + 1)
        request_logged(made, ended(504, out_of_time=True), NOW + 1)
        assert ["timeout"] == [class_of(one) for one in record.attempts]
        assert {} == made.requests.by_id

    def test_charges_an_attempt_once(self) -> None:
        made = gateway(config(BIG, {"cooldown": {"consecutive": 2}}))
        state = routed(made)
        made.requests.attempt_failed(state, Failure(ErrorClass.SERVER_ERROR, 500), NOW + 1)
        attempt_logged(made, logged("upstream_remote_reset", status=500), NOW + 1)
        assert made.health.view(A, NOW + 1).eligible


class TestARequestOfAProcessThatDied:
    """Its successor saw only the second attempt begin."""

    STRICT: dict[str, Any] = {"big": chain(A, B)}  # noqa: RUF012

    def taken_over(self) -> tuple[Gateway, RequestState]:
        state = routed(gateway(config(self.STRICT, ONE_STRIKE)))
        made = gateway(config(self.STRICT, ONE_STRIKE))
        second = state.failed("timeout", None).opened(2, NOW + 0.6, ("timeout",))
        made.requests.open_attempt(second, NOW + 0.6)
        return made, second

    @pytest.mark.parametrize("also_the_first", [True, False])
    def test_charges_the_second_attempt_whether_or_not_the_first_is_still_reported(self, also_the_first: bool) -> None:
        made, _ = self.taken_over()
        if also_the_first:
            attempt_logged(made, logged("upstream_request_timeout"), NOW + 1)
        attempt_logged(made, logged("upstream_remote_reset", cluster="b-cluster"), NOW + 1)
        reasons = [made.health.view(key, NOW + 1).reason for key in (A, B)]
        assert [None, "connection"] == reasons

    def test_charges_the_second_attempt_once(self) -> None:
        made, second = self.taken_over()
        made.requests.attempt_failed(second, Failure(ErrorClass.RATE_LIMITED, 429), NOW + 1)
        assert [True, True] == [attempt.settled for attempt in made.requests.by_id[REQUEST_ID].attempts]

    def test_knows_whether_its_answer_is_held(self) -> None:
        made, second = self.taken_over()
        made.requests.attempt_held(second, held=True)
        assert [False, True] == [attempt.held for attempt in made.requests.by_id[REQUEST_ID].attempts]

    def test_keeps_the_attempt_that_failed_here(self) -> None:
        state = routed(gateway(config(self.STRICT)))
        made = gateway(config(self.STRICT))
        made.requests.attempt_failed(state, Failure(ErrorClass.RATE_LIMITED, 429), NOW + 0.5)
        made.requests.open_attempt(state.failed("rate_limited", None).opened(2, NOW, ("rate_limited",)), NOW + 0.6)
        attempts = made.requests.by_id[REQUEST_ID].attempts
        assert [(A, True), (B, False)] == [(attempt.step.key, attempt.settled) for attempt in attempts]

    @pytest.mark.parametrize("entry_first", [True, False])
    def test_charges_an_attempt_that_envoy_gave_up_once_its_entry_came(self, entry_first: bool) -> None:
        state = routed(gateway(config(self.STRICT, ONE_STRIKE)))
        made = gateway(config(self.STRICT, ONE_STRIKE))
        entry = logged("upstream_remote_reset")
        if entry_first:
            attempt_logged(made, entry, NOW + 1)
        made.requests.take_over(state, NOW + 1)
        second = state.opened(2, NOW + 1, ("connection",))
        made.requests.open_attempt(second, NOW + 1)
        if not entry_first:
            attempt_logged(made, entry, NOW + 1)
        good = logged(status=200, first_byte_s=0.1, cluster="b-cluster")
        request_logged(made, ended(attempts=2, last=good, state=lambda: second), NOW + 2)
        assert ("connection", {}) == (made.health.view(A, NOW + 2).reason, made.requests.by_id)

    def test_settles_a_success_by_the_request_s_own_entry(self, monkeypatch: pytest.MonkeyPatch) -> None:
        state = routed(gateway(config(self.STRICT)))
        made = gateway(config(self.STRICT))
        settled: list[Any] = []
        monkeypatch.setattr(made.requests.observer, "attempt_settled", lambda attempt, state: settled.append(attempt))
        last = logged(status=200, first_byte_s=0.1)
        request_logged(made, ended(last=last, state=lambda: state), NOW + 1)
        assert [(A, True)] == [(attempt.step.key, attempt.good) for attempt in settled]
        assert {} == made.requests.by_id

    def test_is_not_taken_over_when_its_end_was_told_as_lost(self) -> None:
        state = routed(gateway(config(self.STRICT)))
        made = gateway(config(self.STRICT))
        request_logged(made, ended(state=lambda: state), NOW + RECORD_MAX_AGE_S + 1)
        assert {} == made.requests.by_id

    def test_leaves_few_entries_behind_when_nobody_takes_it_over(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(open_requests, "EARLY_LIMIT", 2)
        made = gateway(config(self.STRICT))
        for name in "xyz":
            attempt_logged(made, replace(logged(), request_id=name), NOW)
        assert [0, 1, 1] == [len(made.requests.take_early(name)) for name in "xyz"]


class TestALastAttemptWithoutAnEntryOfItsOwn:
    GOOD = logged(status=200, first_byte_s=0.1)

    def settled(self, made: Gateway, last: AttemptLogged, **more: Any) -> list[tuple[bool, str | None]]:
        """Let a request end and return what became of its attempts: whether good, and the class of a failure."""
        attempts = made.requests.by_id[REQUEST_ID].attempts
        request_logged(made, ended(last=last, **more), NOW + 1)
        assert all(attempt.settled for attempt in attempts)
        return [(a.good, a.failure.error_class.value if a.failure else None) for a in attempts]

    def test_is_settled_by_the_request_s_own(self) -> None:
        made = gateway(config(BIG))
        routed(made)
        assert [(True, None)] == self.settled(made, self.GOOD)
        assert {} == made.requests.by_id

    def test_is_nobody_s_fault_when_the_caller_left(self) -> None:
        made = gateway(config(BIG, ONE_STRIKE))
        routed(made)
        assert [(False, None)] == self.settled(made, logged("downstream_remote_reset", status=200), status=200)
        assert ({}, True) == (made.requests.by_id, made.health.view(A, NOW + 1).eligible)

    def test_follows_failed_ones_that_have_theirs(self) -> None:
        made = gateway(config(BIG))
        failed_over(made)
        attempt_logged(made, logged(status=429), NOW + 1)
        good = logged(status=200, first_byte_s=0.1, cluster="b-cluster")
        assert [(False, "rate_limited"), (True, None)] == self.settled(made, good, attempts=2)
        assert {} == made.requests.by_id

    def test_keeps_the_verdict_that_its_own_entry_gave_after_all(self) -> None:
        """An upstream connection can break after its answer was whole for the caller."""
        made = gateway(config(BIG))
        routed(made)
        attempt_logged(made, logged("upstream_remote_reset", status=200, first_byte_s=0.1), NOW + 1)
        assert [(False, "stream_cut")] == self.settled(made, self.GOOD)

    def test_is_left_alone_when_it_went_elsewhere(self) -> None:
        """Then an attempt began of which nobody here knows, and its own entry may still come."""
        made = gateway(config(BIG))
        routed(made)
        request_logged(made, ended(last=logged(status=200, cluster="b-cluster")), NOW + 1)
        assert [False] == [attempt.settled for attempt in made.requests.by_id[REQUEST_ID].attempts]

    @pytest.mark.parametrize("error_class", [ErrorClass.STREAM_CUT, ErrorClass.STREAM_STALL])
    def test_was_ended_by_the_judge_amid_a_good_answer(self, error_class: ErrorClass) -> None:
        made = gateway(config(BIG))
        made.requests.attempt_failed(routed(made), Failure(error_class), NOW + 1)
        request_logged(made, ended(), NOW + 1)
        assert {} == made.requests.by_id


class TestARecord:
    def test_is_closed_when_the_request_and_its_failed_attempts_were_reported(self) -> None:
        made = gateway(config(BIG))
        routed(made)
        attempt_logged(made, logged("upstream_remote_reset"), NOW + 1)
        kept = REQUEST_ID in made.requests.by_id
        request_logged(made, ended(502), NOW + 1)
        assert (True, {}) == (kept, dict(made.requests.by_id))

    def test_is_closed_by_a_failed_attempt_when_the_request_came_first(self) -> None:
        made = gateway(config(BIG))
        failed_over(made)
        good = logged(status=200, first_byte_s=0.1, cluster="b-cluster")
        request_logged(made, ended(attempts=2, last=good), NOW + 1)
        kept = REQUEST_ID in made.requests.by_id
        attempt_logged(made, logged(status=429), NOW + 1)
        assert (True, {}) == (kept, dict(made.requests.by_id))

    def test_of_a_request_that_never_reached_a_provider_is_closed_at_once(self) -> None:
        made = gateway(config(BIG))
        routed(made)
        request_logged(made, RequestLogged(REQUEST_ID, 503, frozenset(), 0), NOW + 1)
        assert {} == dict(made.requests.by_id)


class TestAnAllowance:
    @pytest.mark.parametrize(
        ("headers", "expected"),
        [
            ({"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "20s"}, "paced"),
            ({"x-ratelimit-remaining-requests": "1", "x-ratelimit-reset-requests": "20s"}, None),
            ({"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "500ms"}, None),
            ({}, None),
        ],
    )
    def test_that_a_good_answer_reports_as_spent_rests_the_target(
        self, headers: dict[str, str], expected: str | None
    ) -> None:
        made = gateway(config(BIG))
        routed(made)
        request_logged(made, ended(last=logged(status=200, first_byte_s=0.1, headers=headers)), NOW + 1)
        view = made.health.view(A, NOW + 2)
        assert expected == (None if view.eligible else view.reason)

    def test_is_whole_again_as_long_after_the_answer_began_as_it_says(self) -> None:
        """The entry comes with the end of the answer: here 15 of the 20 s have passed by then."""
        made = gateway(config(BIG))
        routed(made)
        headers = {"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "20s"}
        request_logged(made, ended(last=logged(status=200, headers=headers, answer_s=15.0)), NOW + 16)
        assert [False, True] == [made.health.view(A, NOW + second).eligible for second in (20, 22)]

    def test_that_a_failure_reports_is_the_judge_s_to_read(self) -> None:
        headers = {"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "20s"}
        assert reason_after(logged(status=500, first_byte_s=0.1, headers=headers)) is None


def test_the_time_to_the_first_token_counts_rather_than_to_the_first_byte(monkeypatch: pytest.MonkeyPatch) -> None:
    made = gateway(config(BIG))
    state = routed(made)
    made.requests.attempt_held(state, held=False, first_token_s=2.0)
    seen: list[Any] = []

    def settled(attempt: Any, state: Any, verdict: Any, now: float) -> None:
        seen.append(verdict)

    monkeypatch.setattr(made.requests, "settle", settled)
    request_logged(made, ended(last=logged(status=200, first_byte_s=0.1, request_bytes=40)), NOW + 3)
    assert Success(2.0, 40) == seen[0]


class TestSlowness:
    """Times to first token are compared with each other and with nothing else."""

    now = NOW

    def made(self, **policy: Any) -> Gateway:
        return gateway(config(BIG, policy))

    def serve(self, made: Gateway, times: int, *, first_token_s: float | None, first_byte_s: float = 0.3) -> None:
        """Serve requests a second apart; without a time to first token they are whole answers."""
        for _ in range(times):
            self.now += 1.0
            state = routed(made, self.now, stream=first_token_s is not None)
            if first_token_s is not None:
                made.requests.attempt_held(state, held=False, first_token_s=first_token_s)
            step = state.step(1)
            assert step is not None
            good = logged(status=200, first_byte_s=first_byte_s, cluster=step.cluster)
            request_logged(made, ended(last=good), self.now)

    def test_of_streams_costs_the_target_traffic(self) -> None:
        made = self.made()
        self.serve(made, 40, first_token_s=0.3)
        self.serve(made, 12, first_token_s=6.0)
        assert "slow" == made.health.view(A, self.now).reason

    def test_is_not_seen_in_whole_answers_after_streams(self) -> None:
        made = self.made()
        self.serve(made, 40, first_token_s=0.3)
        self.serve(made, 60, first_token_s=None, first_byte_s=6.0)
        assert made.health.view(A, self.now).reason is None

    def test_is_not_seen_in_long_answers_after_short_ones(self) -> None:
        made = self.made()
        self.serve(made, 40, first_token_s=None, first_byte_s=0.3)
        self.serve(made, 60, first_token_s=None, first_byte_s=6.0)
        assert made.health.view(A, self.now).reason is None

    def test_is_not_seen_in_streams_that_are_held_to_their_end(self) -> None:
        made = self.made(stream_guard="complete")
        self.serve(made, 40, first_token_s=0.3)
        self.serve(made, 60, first_token_s=6.0)
        assert made.health.view(A, self.now).reason is None
