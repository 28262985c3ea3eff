"""Health checks of a cluster's parts."""

from __future__ import annotations

import ssl
import urllib.error
import urllib.request
from pathlib import Path

__all__ = ["Probe"]


class Probe:
    """A client for health URLs, with the administrator's certificate."""

    def __init__(self, certificates: Path) -> None:
        context = ssl.create_default_context(cafile=str(certificates / "ca.crt"))
        context.load_cert_chain(certificates / "admin.crt", certificates / "admin.key")
        # A proxy from the environment must not be used for the loopback.
        self._opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)
        )

    def good(self, url: str) -> bool:
        try:
            with self._opener.open(url, timeout=5) as answer:
                return bool(answer.status == 200)
        except urllib.error.HTTPError as error:
            error.close()
            return False
        except OSError:
            return False
