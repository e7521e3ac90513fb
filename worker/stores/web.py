"""Objects behind http and https URLs."""

from __future__ import annotations

from urllib.parse import urljoin

from worker.errors import Reject
from worker.stores import Denied, Missing, Opened
from worker.stores.allow import Allowed
from worker.stores.http_client import Address, HttpClient, NotAllowed, Response
from worker.stores.options import StoreOptions
from worker.stores.url import BadUrl, Url, parse

REDIRECTS = 5


class Web:
    """Any HTTP server: ``https://host/path``. Each redirect must be under the allow list as well."""

    def __init__(self, options: StoreOptions) -> None:
        self._allowed = options.allowed
        self._client = HttpClient(options.timeout_s, options.ca_file)

    def open(self, url: Url) -> Opened:
        return self._found(url, "GET")

    def size(self, url: Url) -> int | None:
        """Bytes of an object; raises as :meth:`open`."""
        response = self._found(url, "HEAD")
        response.close()
        return response.size

    def put(self, url: Url, data: bytes, content_type: str) -> None:
        response = self._ask("PUT", url, {"Content-Type": content_type}, data)
        try:
            if not 200 <= response.status < 300:
                raise Denied(f"the server answers with status {response.status}")
            response.read(1 << 16)
        finally:
            response.close()

    def close(self) -> None:
        self._client.close()

    def _found(self, url: Url, method: str) -> Response:
        for _ in range(REDIRECTS + 1):
            response = self._ask(method, url)
            if response.status == 200:
                return response
            response.close()
            if response.status in (404, 410):
                raise Missing
            if response.status not in (301, 302, 303, 307, 308) or not response.location:
                raise Denied(f"the server answers with status {response.status}")
            url = redirected(url, response.location, self._allowed)
        raise Denied(f"the server redirects more than {REDIRECTS} times")

    def _ask(
        self, method: str, url: Url, headers: dict[str, str] | None = None, body: bytes | None = None
    ) -> Response:
        def may_connect(address: Address) -> bool:
            return self._allowed.may_connect(url, address)

        try:
            return self._client.ask(method, url, may_connect, headers, body)
        except NotAllowed as error:
            raise Reject(
                f"the host of {url} is the private address {error.address}, which no entry of the allow list names",
                "reference_refused",
            ) from None


def redirected(url: Url, location: str, allowed: Allowed) -> Url:
    """Where a redirect leads, if it may be followed.

    Raises:
        Reject: it may not (``reference_refused``).
    """
    try:
        # urljoin resolves dot segments, so the target is looked at as it is and joined only where it is relative.
        target = parse(location if "://" in location else urljoin(f"{url.place}{url.target}", location))
    except BadUrl as error:
        raise Reject(f"{url} redirects to a URL that is not followed: {error}", "reference_refused") from None
    if target.scheme not in ("http", "https") or target not in allowed:
        raise Reject(f"{url} redirects to {target}, which is not under the allow list", "reference_refused")
    if url.scheme == "https" and target.scheme == "http":
        raise Reject(f"{url} redirects to {target}, which is not encrypted", "reference_refused")
    return target
