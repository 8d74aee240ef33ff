"""A real time-stamping authority on loopback: `openssl ts` behind HTTP."""

from __future__ import annotations

import contextlib
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

_CONFIG = """
[ca]
basicConstraints = critical, CA:TRUE
keyUsage = critical, keyCertSign
[stamp]
basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature
extendedKeyUsage = critical, timeStamping
[tsa]
default_tsa = one
[one]
serial = {folder}/serial
signer_cert = {folder}/tsa.crt
signer_key = {folder}/tsa.key
signer_digest = sha256
default_policy = 1.2.3.4
digests = sha256, sha512
"""
# No `certs = …` there: with the chain embedded, openssl's order of the set is one that rfc3161-client refuses.


@dataclass
class Authority:
    """url: where it answers.  roots: its certificate authority, PEM.  status: what to answer instead of a timestamp."""

    url: str
    roots: bytes
    folder: Path
    status: int = 200
    body: bytes | None = None
    asked: int = 0

    def stamp(self, request: bytes) -> bytes:
        """The response to a request (both DER)."""
        query, out = self.folder / "query", self.folder / "reply"
        query.write_bytes(request)
        _openssl(self.folder, "ts", "-reply", "-config", "tsa.cnf", "-queryfile", str(query), "-out", str(out))
        return out.read_bytes()


@contextlib.contextmanager
def running_authority(folder: Path) -> Iterator[Authority]:
    """Answer requests until the block ends, with a root and a certificate under it that the folder has, or that are
    made."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "tsa.crt").exists():
        _certify(folder)
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            request = self.rfile.read(int(self.headers["Content-Length"]))
            with lock:
                authority.asked += 1
                body = authority.stamp(request) if authority.body is None else authority.body
            self.send_response(authority.status)
            self.send_header("Content-Type", "application/timestamp-reply")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    authority = Authority(f"http://127.0.0.1:{server.server_port}/tsr", (folder / "ca.crt").read_bytes(), folder)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield authority
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _certify(folder: Path) -> None:
    (folder / "tsa.cnf").write_text(_CONFIG.format(folder=folder))
    (folder / "serial").write_text("01\n")
    new = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
    _openssl(folder, "req", "-x509", *new, "-keyout", "ca.key", "-out", "ca.crt", "-days", "2", "-subj", "/CN=Test root",
             "-config", "tsa.cnf", "-extensions", "ca")  # fmt: skip
    _openssl(
        folder, "req", *new, "-keyout", "tsa.key", "-out", "tsa.csr", "-subj", "/CN=Test time", "-config", "tsa.cnf"
    )
    _openssl(folder, "x509", "-req", "-in", "tsa.csr", "-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial", "-out",
             "tsa.crt", "-days", "2", "-extfile", "tsa.cnf", "-extensions", "stamp")  # fmt: skip


def _openssl(folder: Path, *arguments: str) -> None:
    subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)
