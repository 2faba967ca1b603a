"""Serves the page on this machine only."""

from __future__ import annotations

import json
import os
import socket
import threading
import urllib.request
import webbrowser
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from app.settings import load_settings
from engine.errors import InvalidSetting, PortInUse
from engine.paths import data_dir

if TYPE_CHECKING:
    import uvicorn
    from fastapi import FastAPI

    from app.engine_host import Loader
    from app.program import Program

APPLICATION = "ExpertFlow Desktop"
LOOPBACK = ("127.0.0.1", "localhost")
PROBE_SECONDS = 2.0
SHUTDOWN_SECONDS = 3
# Whatever a model writes, the browser asks no other machine for anything.
CONTENT_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self' data: blob:; worker-src 'self' blob:; "
    "frame-src 'none'; object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'none'"
)


def run(
    engine_options: Mapping[str, Any] | None = None,
    host: str | None = None,
    port: int | None = None,
    open_browser: bool | None = None,
    load: Loader | None = None,
    record_routing: bool | None = None,
    chats_at_once: int | None = None,
) -> None:
    """Serves the chat page until Ctrl-C.

    None (also inside `engine_options`, whose keys are `Engine.load`'s) means "not given": environment, settings
    file and defaults then decide. Raises PortInUse and InvalidSetting before anything is loaded.
    """
    _silence_telemetry()
    given = dict(engine_options or {}) | {"host": host, "port": port, "open_browser": open_browser}
    given |= {"record_routing": record_routing, "chats_at_once": chats_at_once}
    settings = load_settings(given)
    listener = listen(settings.host, settings.port)
    address = f"http://{settings.host}:{listener.getsockname()[1]}"
    print(f"{APPLICATION}: {address}  (Ctrl-C ends it)", flush=True)
    from app.program import Program

    program = Program(settings, load)
    try:
        server = make_server(program)
        program.start()  # after the page's imports: two threads importing at once make both slower
        if settings.open_browser:
            _open_browser(address)
        server.run(sockets=[listener])
    finally:
        program.close()
        listener.close()


def listen(host: str, port: int) -> socket.socket:
    """A listening socket, taken before anything slow so that nothing is loaded in vain.

    Raises InvalidSetting for an address other machines could reach, PortInUse where someone listens already.
    """
    if host not in LOOPBACK:
        raise InvalidSetting(
            f"The page would be reachable from other machines at {host}.",
            "Use 127.0.0.1; other addresses need a key, which this version does not have.",
        )
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    if os.name == "posix":
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port just left is free again
    try:
        listener.bind((host, port))
        listener.listen(128)
    except OSError as error:
        listener.close()
        raise _port_in_use(host, port, error) from error
    return listener


def build_app(program: Program) -> FastAPI:
    """The web application: identity of this program at /health, the page at /."""
    import gradio as gr
    from fastapi import FastAPI
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    from app.guard import SameOriginGuard
    from app.ui.page import build_page
    from app.ui.theme import head, theme

    app = FastAPI(title=APPLICATION, docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(SameOriginGuard, content_policy=CONTENT_POLICY, hosts=LOOPBACK)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(LOOPBACK))

    @app.get("/health")
    def health() -> dict[str, Any]:
        state = program.host.state
        return {
            "application": APPLICATION,
            "pid": os.getpid(),
            "model": program.model_name,
            "state": state.words,
            "ready": state.ready,
            "failed": state.error is not None,
        }

    return gr.mount_gradio_app(
        app,
        build_page(program),
        path="/",
        run_history=False,
        footer_links=[],
        ssr_mode=False,
        allowed_paths=[],
        mcp_server=False,
        enable_monitoring=False,
        pwa=False,
        theme=theme(),
        head=head(),
    )


def _silence_telemetry() -> None:
    """Before gradio and huggingface_hub are imported: they read these then."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    os.environ["DO_NOT_TRACK"] = "1"
    os.environ.setdefault("GRADIO_TEMP_DIR", str(data_dir() / "uploads"))


def make_server(program: Program) -> uvicorn.Server:
    """The web server of `program`; `run(sockets=[listener])` serves until told to end."""
    import uvicorn

    config = uvicorn.Config(
        build_app(program),
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=SHUTDOWN_SECONDS,
    )
    return uvicorn.Server(config)


def _open_browser(address: str) -> None:
    threading.Thread(target=webbrowser.open, args=(address,), name="browser", daemon=True).start()


def _port_in_use(host: str, port: int, error: OSError) -> PortInUse:
    other = _who_listens(host, port)
    if other is not None:
        return PortInUse(
            f"{APPLICATION} is already running at http://{host}:{port} "
            f"(process {other.get('pid')}, model {other.get('model')}).",
            f"Open that page, or start a second one with --port {port + 1}.",
        )
    return PortInUse(
        f"Port {port} cannot be used: {error.strerror or error}.",
        f"Another program listens there, or {APPLICATION} is just starting; close it or choose --port {port + 1}.",
    )


def _who_listens(host: str, port: int) -> dict[str, Any] | None:
    """What /health says there, if it is one of us."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"http://{host}:{port}/health", timeout=PROBE_SECONDS) as answer:
            words = json.loads(answer.read(10_000))
    except (OSError, ValueError):
        return None
    return words if isinstance(words, dict) and words.get("application") == APPLICATION else None
