"""The server stays on this machine and says who holds its port."""

import json
import socket
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from starlette.testclient import TestClient

from app.server import APPLICATION, build_app, listen
from engine.errors import InvalidSetting, PortInUse


@pytest.fixture
def other_program():
    """Starts a web server that answers /health with the given words; returns its port."""
    servers = []

    def start(words):
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                self.send_response(200)
                self.end_headers()
                self.wfile.write(words)

            def log_message(self, *_):
                """Quiet."""

        server = HTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return server.server_port

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def test_a_free_port_is_taken():
    listener = listen("127.0.0.1", 0)
    port = listener.getsockname()[1]
    with socket.create_connection(("127.0.0.1", port), timeout=5):
        listener.close()


def test_a_second_instance_is_recognised_and_named(other_program):
    port = other_program(json.dumps({"application": APPLICATION, "pid": 4711, "model": "demo"}).encode())
    with pytest.raises(PortInUse) as caught:
        listen("127.0.0.1", port)
    assert "already running" in caught.value.cause
    assert "4711" in caught.value.cause
    assert f"--port {port + 1}" in caught.value.remedy


@pytest.mark.parametrize("words", [b"hello", b"[1]", b'{"application": "other"}'])
def test_another_program_on_the_port_is_told_in_words(other_program, words):
    port = other_program(words)
    with pytest.raises(PortInUse) as caught:
        listen("127.0.0.1", port)
    assert f"Port {port}" in caught.value.cause
    assert "--port" in caught.value.remedy


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.5", "example.org"])
def test_other_machines_are_not_served(host):
    with pytest.raises(InvalidSetting):
        listen(host, 0)


@pytest.fixture(scope="module")
def client(make_program):
    with TestClient(build_app(make_program()), base_url="http://127.0.0.1") as client:
        yield client


def test_health_names_the_program(client):
    words = client.get("/health").json()
    assert words["application"] == APPLICATION
    assert words["model"] == "demo"


def test_the_page_forbids_the_browser_to_ask_other_machines(client):
    answer = client.get("/")
    assert answer.status_code == 200
    policy = answer.headers["content-security-policy"]
    assert "default-src 'self'" in policy
    assert "http:" not in policy
    assert "https:" not in policy


def test_a_foreign_host_name_is_refused(client):
    assert client.get("/", headers={"host": "evil.example"}).status_code == 400


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://127.0.0.1.evil.example"])
def test_a_foreign_pages_script_is_refused(client, origin):
    answer = client.post("/gradio_api/run/predict", json={}, headers={"origin": origin})
    assert answer.status_code == 403


def test_the_pages_own_script_is_served(client):
    assert client.get("/health", headers={"origin": "http://127.0.0.1:7860"}).status_code == 200


def test_no_run_history_and_no_analytics(client):
    config = client.get("/config").json()
    assert config["analytics_enabled"] is False
    assert not config.get("run_history")
