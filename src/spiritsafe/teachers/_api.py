"""A teacher behind any OpenAI-compatible chat API."""

from __future__ import annotations

import asyncio
import time
import urllib.request
from email.utils import parsedate_to_datetime
from typing import Any

import aiohttp
import orjson

from spiritsafe.records import Request, TeacherInfo, Usage
from spiritsafe.teachers._base import Answer, Kind, TeacherError
from spiritsafe.teachers._config import TeacherConfig
from spiritsafe.wire import MalformedReply, parse_completion, request_body, snippet

__all__ = ["ApiTeacher"]

# `owned_by` of servers that understand fields of their own; any other might refuse a request for them.
_GIVES_TOKEN_IDS = {"spiritsafe", "vllm"}
_NAMES_TOKENS_BY_ID = {"spiritsafe"}
_CONNECT_S = 15.0
_GATEWAY_TIMEOUTS = {504, 524}  # the model behind the gateway may still finish, and bill


class ApiTeacher:
    """Chat completions over one pooled session. Safe to call concurrently from one event loop.

    Raises:
        BadInput: the environment variable for the key is not set.
    """

    def __init__(self, config: TeacherConfig) -> None:
        assert config.base_url is not None
        self._config = config
        self._key = config.api_key()
        self._headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if self._key:
            self._headers["Authorization"] = f"Bearer {self._key}"
        self._session: aiohttp.ClientSession | None = None
        self._models: asyncio.Task[list[dict[str, Any]]] | None = None
        self._limit_field = "max_tokens"
        self._owners: set[str] | None = None

    @property
    def info(self) -> TeacherInfo:
        return TeacherInfo(self._config.model_id, self._config.revision, self._config.host)

    async def models(self) -> list[dict[str, Any]]:
        """What the API lists under /models, asked once; empty where it does not list, or cannot be reached."""
        if self._models is None:
            self._models = asyncio.ensure_future(self._list_models())
        return await asyncio.shield(self._models)

    async def complete(self, request: Request) -> Answer:
        """Answer one request. See `Teacher.complete`; nothing in an error ever shows the key."""
        if self._owners is None:
            self._owners = {str(m.get("owned_by")) for m in await self.models()}
        field, owners, model_id = self._limit_field, self._owners, self._config.model_id
        body = request_body(
            request,
            model_id,
            token_ids=not owners.isdisjoint(_GIVES_TOKEN_IDS),
            tokens_by_id=not owners.isdisjoint(_NAMES_TOKENS_BY_ID),
            limit_field=field,
        )
        try:
            raw = await self.post("chat/completions", body)
        except TeacherError as error:
            if error.kind != "bad_request":
                raise
            # Reasoning models refuse `max_tokens` and name the field they want instead.
            if "max_completion_tokens" in str(error) and field == "max_tokens":
                self._limit_field = "max_completion_tokens"
            # A gateway in front of a server that gives token ids (this project's guard) may keep them back.
            elif "return_token" in str(error) and not owners.isdisjoint(_GIVES_TOKEN_IDS):
                self._owners = set()
            else:
                raise
            return await self.complete(request)
        try:
            read = parse_completion(raw)
        except MalformedReply as fault:
            raise self._error("malformed", f"answered 200 with {fault}; is base_url right?", billed=True) from None
        return Answer(
            read.replies,
            read.usage or Usage(0, 0),
            read.model or model_id,
            raw,
            read.usage is not None,
            read.watermark_key_id,
        )

    async def aclose(self) -> None:
        if self._models is not None:
            self._models.cancel()
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def post(self, path: str, body: dict[str, Any]) -> bytes:
        """Ask any endpoint of the API, `path` below base_url; returns the body of a 200 answer.

        Raises:
            TeacherError: anything else came back; as `complete`.
        """
        session, url = self._open_session(), f"{self._config.base_url}/{path}"
        try:
            async with session.post(url, data=orjson.dumps(body), allow_redirects=False) as response:
                raw = await response.read()
                if response.status == 200:
                    return raw
                raise self._refusal(response, raw)
        except aiohttp.ConnectionTimeoutError:
            raise self._error("network", "does not accept connections in time; is it running?") from None
        except TimeoutError:
            limit = f"gave no answer in {self._config.timeout_s:g} s (teacher.timeout_s)"
            raise self._error("timeout", limit, billed=True) from None
        except aiohttp.ClientConnectorError as error:
            reason = getattr(error.os_error, "strerror", None) or str(error.os_error)
            raise self._error("network", f"unreachable ({reason}); is it running?") from None
        except aiohttp.ClientResponseError as error:
            raise self._error("malformed", f"does not speak HTTP ({error.message})", billed=True) from None
        except (aiohttp.ClientError, OSError) as error:
            reason = str(error) or type(error).__name__
            raise self._error("network", f"broke off the connection ({reason})", billed=True) from None

    def _refusal(self, response: aiohttp.ClientResponse, raw: bytes) -> TeacherError:
        status, said = response.status, _api_message(raw)
        retry_after = _retry_after(response.headers.get("Retry-After"))
        if status in (401, 402, 403):
            named = self._config.api_key_env
            check = f"check the key in {named}" if named else "set teacher.api_key_env to the variable with the key"
            return self._error("auth", f"answered {status}: {said}; {check}")
        if status == 429:
            if "insufficient_quota" in raw[:2000].decode("utf-8", "replace"):
                return self._error("auth", f"answered 429: {said}; the account is out of credit")
            return self._error("rate_limited", f"answered 429: {said}", retry_after=retry_after)
        if status == 408 or status in _GATEWAY_TIMEOUTS:
            billed = status in _GATEWAY_TIMEOUTS
            return self._error("timeout", f"answered {status}: {said}", retry_after=retry_after, billed=billed)
        if status >= 500:
            return self._error("server", f"answered {status}: {said}", retry_after=retry_after)
        if 300 <= status < 400:
            said = f"a redirect to {response.headers.get('Location', 'nowhere')}; put that address in base_url"
        elif status == 404:
            said += f"; is {self._config.model_id} the right model, and base_url right?"
        return self._error("bad_request", f"answered {status}: {said}")

    def _error(
        self, kind: Kind, message: str, *, retry_after: float | None = None, billed: bool = False
    ) -> TeacherError:
        text = f"teacher {self._config.base_url} {message}"
        if self._key:
            text = text.replace(self._key, "***")
        return TeacherError(kind, text, retry_after=retry_after, billed=billed)

    async def _list_models(self) -> list[dict[str, Any]]:
        session = self._open_session()
        limit = aiohttp.ClientTimeout(total=min(10.0, self._config.timeout_s))
        try:
            async with session.get(f"{self._config.base_url}/models", timeout=limit, allow_redirects=False) as response:
                listed = orjson.loads(await response.read())["data"] if response.status == 200 else []
            return [entry for entry in listed if isinstance(entry, dict)]
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError, KeyError, TypeError):
            return []  # listing is a courtesy; what is wrong shows at the first completion

    def _open_session(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                # No limit of its own (the default of 100 would queue unseen): the collector decides how many run.
                connector=aiohttp.TCPConnector(limit=0, ttl_dns_cache=300),
                timeout=aiohttp.ClientTimeout(total=self._config.timeout_s, sock_connect=_CONNECT_S),
                headers=self._headers,
                cookie_jar=aiohttp.DummyCookieJar(),
                proxy=_proxy(self._config.base_url or "", self._config.host or ""),
            )
        return self._session


def _proxy(url: str, host: str) -> str | None:
    """The proxy the environment names for `url`, unless it exempts the host."""
    if urllib.request.proxy_bypass(host) or host in ("localhost", "127.0.0.1", "::1"):
        return None
    return urllib.request.getproxies().get(url.partition(":")[0])


def _api_message(raw: bytes) -> str:
    """What an error body says: OpenAI's `error.message` and its relatives, else the start of the body."""
    try:
        data = orjson.loads(raw)
        error = data.get("error", data)
        said = error if isinstance(error, str) else error.get("message") or error.get("detail")
        if isinstance(said, str) and said:
            return snippet(said.encode(), 300)
    except (orjson.JSONDecodeError, AttributeError):
        pass
    return snippet(raw)


def _retry_after(value: str | None) -> float | None:
    """Seconds from a Retry-After header: a number or an HTTP date."""
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(value).timestamp() - time.time()
        except ValueError:
            return None
    return min(max(seconds, 0.0), 3600.0) if seconds == seconds else None
