"""The page's sign-in, where the server has keys: a form asks for a key, and a cookie says afterwards that it was right.

The cookie is until when it is valid, in seconds since 1970, and the HMAC of that under the key. So it does not give the
key away, outlives the server, and is worth nothing once the key is changed. It opens the page alone, not the API.
"""

import hashlib
import hmac
import time
from collections.abc import Sequence
from urllib.parse import parse_qs

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response

COOKIE = "codebrush"
SIGN_IN = "/login"  # its path
SECONDS = 30 * 24 * 3600  # for which a cookie is valid
LONGEST = 4096  # bytes of the form
router = APIRouter(include_in_schema=False)


def right_key(given: bytes, keys: Sequence[str]) -> str | None:
    """The one of the keys that was given; the comparison takes as long whichever it is."""
    matches = [key for key in keys if hmac.compare_digest(given, key.encode())]
    return matches[0] if matches else None


def cookie_for(key: str, now: float) -> str:
    """The cookie of one who knew the key."""
    return _signed(key, str(int(now) + SECONDS))


def key_of_cookie(cookie: str, keys: Sequence[str], now: float) -> str | None:
    """The key that a cookie was made for, if it is among `keys` and the cookie is still valid."""
    until = cookie.partition(".")[0]
    given = cookie.encode()
    matches = [key for key in keys if hmac.compare_digest(given, _signed(key, until).encode())]
    valid = until.isascii() and until.isdecimal() and int(until[:15]) > now
    return matches[0] if matches and valid else None


def _signed(key: str, until: str) -> str:
    return f"{until}.{hmac.new(key.encode(), f'codebrush page {until}'.encode(), hashlib.sha256).hexdigest()}"


@router.get(SIGN_IN)
def form() -> HTMLResponse:
    """The form."""
    return HTMLResponse(_FORM.replace("{told}", ""))


@router.post(SIGN_IN)
async def sign_in(request: Request) -> Response:
    """Sets the cookie and leads to the page; or asks again."""
    fields = await _fields(request)
    key = right_key(fields.get("key", [""])[0].strip().encode(), request.app.state.context.settings.keys)
    if key is None:
        return HTMLResponse(_FORM.replace("{told}", "This is not the key."), 401)
    reply = RedirectResponse("/", 303)
    secure = request.url.scheme == "https"
    cookie = cookie_for(key, time.time())
    reply.set_cookie(COOKIE, cookie, max_age=SECONDS, httponly=True, samesite="strict", secure=secure)
    return reply


async def _fields(request: Request) -> dict[str, list[str]]:
    """The fields of the form; none if it is longer than a form with a key."""
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > LONGEST:
            return {}
    try:
        return parse_qs(body.decode(errors="replace"), max_num_fields=4)
    except ValueError:
        return {}


@router.post("/logout")
def sign_out() -> Response:
    """Takes the cookie back."""
    reply = RedirectResponse(SIGN_IN, 303)
    reply.delete_cookie(COOKIE, httponly=True, samesite="strict")
    return reply


_FORM = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Codebrush: sign in</title>
<style>
  :root { color-scheme: light dark; }
  body { font: 16px/1.5 system-ui, sans-serif; display: grid; place-items: center; min-height: 90vh; margin: 0 1rem; }
  form { display: grid; gap: .75rem; width: min(22rem, 100%); }
  h1 { font-size: 1.4rem; margin: 0; }
  input, button { font: inherit; padding: .6rem .75rem; border-radius: .4rem; border: 1px solid #8888; }
  button { background: #0f766e; color: #fff; border-color: #0f766e; cursor: pointer; }
  :focus-visible { outline: 3px solid #14b8a6; outline-offset: 2px; }
  p { margin: 0; }
</style>
</head>
<body>
<main>
<form method="post" action="/login">
  <h1>Codebrush</h1>
  <label for="key">Key of this server</label>
  <input id="key" name="key" type="password" autocomplete="current-password" required autofocus>
  <button type="submit">Sign in</button>
  <p role="alert">{told}</p>
</form>
</main>
</body>
</html>
"""
