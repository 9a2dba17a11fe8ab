"""A page on this machine: its address with a secret, its headers, and the server that answers.

All addresses lie below a random token, so that no other page and no other user of the machine can ask. The
server listens on the loopback interface. Only requests whose Host is this machine are answered, so that no
other site can reach it under a name of its own. A page runs no script and loads nothing but its own.
"""

from __future__ import annotations

import hmac
import logging
import secrets
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import flask
from werkzeug.exceptions import HTTPException
from werkzeug.serving import BaseWSGIServer, WSGIRequestHandler, make_server

from talkforge.schemas.errors import CommandError, MediaError, TalkforgeError, one_line
from talkforge.schemas.package_files import package_text

log = logging.getLogger(__name__)

HOSTS = frozenset({"127.0.0.1", "localhost", "[::1]"})

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; media-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""Content-Security-Policy of every answer."""

HEADERS = {
    "Content-Security-Policy": POLICY,
    "Cache-Control": "no-store",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}

SHARED_SCRIPT = "local_page.js"

KINDS = {"js": "text/javascript", "css": "text/css"}


def make_app(
    token: str,
    package: str,
    get: Mapping[str, Callable[..., Any]],
    post: Mapping[str, Callable[..., Any]],
    max_body_bytes: int,
) -> flask.Flask:
    """An application that admits only who knows the token.

    Args:
        token: what every address begins with.
        package: whose files `page.js` and `page.css` are served, the first after what all pages share.
        get: path -> what answers GET.
        post: path -> what answers POST.
        max_body_bytes: most bytes of a request.
    """
    app = flask.Flask(package, static_folder=None, template_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = max_body_bytes
    app.json.sort_keys = False  # type: ignore[attr-defined]
    for method, routes in (("GET", get), ("POST", post)):
        for path, answer in routes.items():
            app.add_url_rule(f"/<token>{path}", f"{method} {path}", answer, methods=[method])
    for name in ("page.js", "page.css"):
        app.add_url_rule(f"/<token>/{name}", name, _resource(package, name), methods=["GET"])

    @app.before_request
    def admit() -> None:
        host = flask.request.host
        name = host if host.endswith("]") else host.rpartition(":")[0] or host
        given = (flask.request.view_args or {}).pop("token", "")
        if name not in HOSTS or not hmac.compare_digest(given.encode(), token.encode()):
            flask.abort(404)

    @app.after_request
    def secure(response: flask.Response) -> flask.Response:
        response.headers.update(HEADERS)
        return response

    @app.errorhandler(TalkforgeError)
    def refuse(error: TalkforgeError) -> tuple[dict[str, str], int]:
        log.debug("refused", exc_info=True)
        code = 409 if isinstance(error, CommandError) else 404 if isinstance(error, MediaError) else 500
        return {"error": one_line(error)}, code

    @app.errorhandler(HTTPException)
    def plain(error: HTTPException) -> tuple[dict[str, str], int]:
        return {"error": error.name}, error.code or 500

    @app.errorhandler(Exception)
    def unexpected(error: Exception) -> tuple[dict[str, str], int]:
        log.warning("the page asked for what failed: %s", one_line(error), exc_info=log.isEnabledFor(10))
        return {"error": f"{type(error).__name__}: {one_line(error)}"}, 500

    return app


@dataclass(frozen=True)
class Server:
    """A server that listens.

    Attributes:
        url: address of the page, with the token.
    """

    url: str
    _server: BaseWSGIServer

    def run(self) -> None:
        """Answer until interrupted, or until `stop` is called in another thread."""
        self._server.serve_forever()

    def stop(self) -> None:
        """End `run`."""
        self._server.shutdown()


def listen(app_of: Callable[[str], flask.Flask], port: int = 0) -> Server:
    """Begin to listen on 127.0.0.1.

    Args:
        app_of: makes the application for a token.
        port: TCP port; 0 takes a free one.

    Raises:
        CommandError: the port is taken or not allowed.
    """
    token = secrets.token_urlsafe(24)
    app = app_of(token)
    try:
        with socket.create_server(("127.0.0.1", port)) as listening:  # werkzeug takes a copy of it
            server = make_server(
                "127.0.0.1", port, app, threaded=True, request_handler=_Quiet, fd=listening.fileno()
            )
    except (OSError, OverflowError) as error:
        raise CommandError(f"--port {port}: cannot listen there ({one_line(error)})") from None
    return Server(f"http://127.0.0.1:{server.port}/{token}/", server)


class _Quiet(WSGIRequestHandler):
    """Does not write each request, with its token, to the terminal."""

    def log_request(self, *_: object, **__: object) -> None:
        pass


def _resource(package: str, name: str) -> Callable[[], flask.Response]:
    kind = KINDS[name.rpartition(".")[2]]
    shared = package_text("talkforge", SHARED_SCRIPT) if name.endswith(".js") else ""
    return lambda: flask.Response(shared + package_text(package, name), mimetype=kind)
