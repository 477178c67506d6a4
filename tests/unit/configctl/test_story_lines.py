"""What a gateway tells of one request is printed as text: a caller's or a provider's words cannot steer a terminal."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

from rich.console import Console

from configctl.live_render import print_story
from extproc.core.story import Replay, explain_json
from tests.support.stories import Scene, served

STEERING = "\x1b]0;mine\x07\x1b[2J\r\x9b31m\u202e"


def printed(story: dict[str, Any]) -> str:
    """Print a story as a terminal gets it."""
    file = io.StringIO()
    print_story(Console(file=file, force_terminal=True, width=200, color_system=None), story)
    return file.getvalue()


def told(**changed: Any) -> dict[str, Any]:
    """Return the story of one served request, some of its facts changed."""
    scene = Scene()
    scene.begin("r")
    scene.attempt_ends("r", "first-cluster")
    scene.request_ends("r", told=served())
    story = replace(scene.story, **changed)
    return explain_json(story, Replay(True, None))


def test_a_story_s_words_cannot_steer_the_terminal() -> None:
    """Rows that an older version wrote, and a provider's own error codes, may hold anything."""
    story = told(model=f"big{STEERING}", client=STEERING, served_by=f"first/{STEERING}")
    story["attempts"][0]["evidence"] = [STEERING]

    text = printed(story)

    assert [] == [char for char in text if not char.isprintable() and char != "\n"]
    assert "for model big ]0;mine" in text


def test_a_story_keeps_its_shape() -> None:
    """What belongs to a heading is set in below it."""
    assert "\n  in  first/big-1 (big tier 0 weight 3): healthy\n" in printed(told())


def test_a_story_whose_evidence_a_restart_took_says_so() -> None:
    text = printed(told(candidates=(), plan=(), ticket=None))
    assert "what was considered was lost with a restart of extproc\n" in text
    assert "no target was considered" not in text


def test_a_story_without_a_plan_says_so() -> None:
    assert "no target was considered\n" in printed(told(candidates=(), ticket=None, attempts=(), served_by=""))


def test_a_story_whose_version_left_memory_says_so() -> None:
    assert "its config version had left memory\n" in printed(told(candidates=()))
