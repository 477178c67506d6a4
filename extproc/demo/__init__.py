"""`extproc demo`: the failover demonstration on the real Envoy, with two fake providers."""

from __future__ import annotations

import http.client
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from extproc.demo.remote import Remote, RemoteProvider, RunningGateway, settle
from extproc.demo.report import Report
from extproc.demo.stage import Gateway, StageError
from extproc.demo.story import FALLBACK_WORDS, PRIMARY_WORDS, Story
from extproc.demo_provider import DemoProvider

__all__ = ["Remote", "run_demo", "run_remote_demo"]


def run_demo() -> int:
    """Play the demonstration; 0 if every claim held, 1 otherwise. Leaves no process behind, Ctrl-C included."""
    report = Report()
    report.say("AI Model Gateway: failover on the real Envoy, with two fake OpenAI-compatible providers.")
    report.say("Everything runs on 127.0.0.1; nothing is asked of the internet.")
    with (
        _told(report),
        DemoProvider(PRIMARY_WORDS) as primary,
        DemoProvider(FALLBACK_WORDS) as fallback,
        Gateway(primary.url, fallback.url) as gateway,
    ):
        _introduce(report, gateway.url, primary.url, fallback.url)
        Story(gateway, primary, fallback, report).play()
    return _end(report)


def run_remote_demo(remote: Remote) -> int:
    """Play the demonstration with a gateway and two providers that run already, and leave them running."""
    report = Report()
    report.say("AI Model Gateway: failover with two fake OpenAI-compatible providers, all of them running already.")
    with _told(report):
        gateway = RunningGateway(remote.gateway, remote.access_log)
        primary, fallback = RemoteProvider(remote.primary), RemoteProvider(remote.fallback)
        settle(gateway, primary, fallback)
        _introduce(report, gateway.url, primary.url, fallback.url)
        Story(gateway, primary, fallback, report).play()
    return _end(report)


def _introduce(report: Report, gateway: str, primary: str, fallback: str) -> None:
    report.say()
    report.say(f"  gateway   {gateway}   the only address a client knows")
    report.say(f"  primary   {primary}   serves the public model demo-primary as primary-model")
    report.say(f"  fallback  {fallback}   serves the public model demo-fallback as fallback-model")
    report.say("Every request below asks the gateway for demo-primary.")


def _end(report: Report) -> int:
    if report.broken_off:
        return 1
    report.table()
    return report.verdict()


@contextmanager
def _told(report: Report) -> Iterator[None]:
    """Turn what can end a demonstration early into a sentence."""
    try:
        with _stoppable():
            yield
    except KeyboardInterrupt:
        report.break_off("The demonstration was interrupted; everything it started is stopped.")
    except (StageError, OSError, http.client.HTTPException) as error:
        report.break_off(f"The demonstration could not go on. {error}")


@contextmanager
def _stoppable() -> Iterator[None]:
    """Let SIGTERM end the demonstration as Ctrl-C does, so that what it started is stopped."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
