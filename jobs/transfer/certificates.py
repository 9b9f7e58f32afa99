"""Why a server's certificate cannot be verified: the certificate, or the file to verify it with."""

from __future__ import annotations

import os
import ssl

from jobs.storage.safe_paths import quoted

# Of requests, and of the Hub's client.
OF_REQUESTS = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
OF_HUB = ("SSL_CERT_FILE",)

_CLOCK = "check this machine's clock; if it is right, tell the server's operator"


def file_fault(variables: tuple[str, ...]) -> str | None:
    """What is wrong with the file of certificates that a variable names; None if nothing is."""
    for variable in variables:
        path = os.environ.get(variable)
        if not path:
            continue
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        try:
            if os.path.isdir(path):  # noqa: PTH112  # a folder of certificates, for requests
                return None
            context.load_verify_locations(path)
        except ssl.SSLError:
            fact = "contains no certificate"
        except OSError as error:
            fact = f"cannot be read ({error.strerror})"
        else:
            return None
        return f"{variable} is {quoted(path)}, which {fact}; correct or unset it"
    return None


def not_verified(site: str, error: ssl.SSLCertVerificationError | None) -> str:
    """A message that the certificate of ``site`` was refused, and what to do."""
    why = getattr(error, "verify_message", "").rstrip(".")
    if "expired" in why or "not yet valid" in why:
        step = _CLOCK
    elif "match" in why or "not valid for" in why:  # a name or an IP address
        step = "check the address"
    else:
        step = "if your site's proxy has its own authority, name its file in REQUESTS_CA_BUNDLE"
    fact = f" ({why})" if why else ""
    return f"the certificate of {site} cannot be verified{fact}; {step}"
