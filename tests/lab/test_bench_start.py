"""The stopwatch for starts, on small programs that stand in for the real one."""

from __future__ import annotations

import sys
import textwrap

import pytest

from engine.lab.bench_start import StartFailed, time_launch

STAND_IN = """
    import json, sys, time
    from http.server import BaseHTTPRequestHandler, HTTPServer

    answers = iter(HEALTH)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            words = b"page" if self.path == "/" else json.dumps(next(answers)).encode()
            self.send_response(200)
            self.end_headers()
            self.wfile.write(words)

    assert sys.argv[1:3] == ["--no-browser", "--port"]
    HTTPServer(("127.0.0.1", int(sys.argv[3])), Handler).serve_forever()
"""


def stand_in(health):
    return (sys.executable, "-c", textwrap.dedent(STAND_IN).replace("HEALTH", repr(health)))


def test_ready_is_later_than_the_page():
    loading = {"state": "Reading", "ready": False, "failed": False}
    seconds = time_launch(stand_in([loading, loading, {"state": "Ready", "ready": True, "failed": False}]))
    assert 0 < seconds["page_seconds"] < seconds["ready_seconds"]


def test_a_model_that_does_not_load_ends_the_wait_with_its_reason():
    failed = {"state": "The shard is cut off.", "ready": False, "failed": True}
    with pytest.raises(StartFailed, match="The shard is cut off"):
        time_launch(stand_in([failed]))


def test_a_program_that_ends_is_reported_with_its_last_words():
    with pytest.raises(StartFailed, match="code 3: no such option"):
        time_launch((sys.executable, "-c", "import sys; print('no such option'); sys.exit(3)"))
