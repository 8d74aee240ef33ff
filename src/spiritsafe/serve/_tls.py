"""Whom the guard believes when an upstream shows a certificate."""

from __future__ import annotations

import ssl
from pathlib import Path

from spiritsafe.errors import BadInput

__all__ = ["trusting"]


def trusting(ca_file: Path | None, where: str) -> ssl.SSLContext:
    """A context that checks certificate and host name.

    ca_file: authorities in PEM that are believed in place of the system's.  where: the upstream, for errors.

    Raises:
        BadInput: the file cannot be read or holds no certificate.
    """
    if ca_file is None:
        return ssl.create_default_context()
    named = f"{where}.ca_file: {ca_file}"
    try:
        context = ssl.create_default_context(cafile=ca_file)
    except ssl.SSLError:  # an OSError too
        raise BadInput(f"{named} holds no certificate; name a file with the authority's certificate in PEM") from None
    except OSError as error:
        raise BadInput(f"{named} cannot be read ({error.strerror}); name the authority's certificate in PEM") from None
    if not context.cert_store_stats()["x509"]:
        raise BadInput(f"{named} holds no certificate; name a file with the authority's certificate in PEM")
    return context
