"""Every request passes here: a token where one is needed, a bound on the rate, headers on every answer."""

import hmac
import time
from collections import OrderedDict

from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

RATE, BURST = 100.0, 1000.0  # requests per second of one client, and how many it may save up
COOKIE = "token"
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class Guard:
    """Asks for the token, bounds the requests per client, and adds the security headers to every answer."""

    def __init__(self, app: ASGIApp, token: str | None) -> None:
        self.app, self.token = app, token
        self._allowances: OrderedDict[str, tuple[float, float]] = OrderedDict()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def secured(message: Message) -> None:
            if message["type"] == "http.response.start":
                own = [(name.lower().encode(), value.encode()) for name, value in HEADERS.items()]
                message["headers"] = [*message.get("headers", []), *own]
            await send(message)

        request = Request(scope)
        answer = self._refusal(request)
        await (self.app if answer is None else answer)(scope, receive, secured)

    def _refusal(self, request: Request) -> Response | None:
        if not self._within_rate(request.client.host if request.client else ""):
            return error_response("too many requests; fix: wait a second", 429)
        if self.token is None:
            return None
        shown = request.query_params.get(COOKIE)
        if shown is not None and hmac.compare_digest(shown.encode(), self.token.encode()):
            answer = RedirectResponse("/", 303)  # so that the token does not stay in the address
            answer.set_cookie(COOKIE, self.token, httponly=True, samesite="strict")
            return answer
        if not hmac.compare_digest(request.cookies.get(COOKIE, "").encode(), self.token.encode()):
            return error_response("a token is needed; fix: open the address that chan serve printed", 401)
        return None

    def _within_rate(self, client: str) -> bool:
        now = time.monotonic()
        allowance, since = self._allowances.pop(client, (BURST, now))
        allowance = min(BURST, allowance + (now - since) * RATE)
        self._allowances[client] = max(allowance - 1, 0), now
        while len(self._allowances) > 1024:
            self._allowances.popitem(last=False)
        return allowance >= 1


def error_response(line: str, status: int) -> Response:
    """An error as JSON."""
    return JSONResponse({"error": line}, status)
