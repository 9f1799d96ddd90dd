"""Certificate chains of signers, made for a test: an authority of its own, and the certificate that it issued."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

CURVES = {"es256": ec.SECP256R1, "es384": ec.SECP384R1, "es512": ec.SECP521R1}
USES = (
    "digital_signature",
    "content_commitment",
    "key_encipherment",
    "data_encipherment",
    "key_agreement",
    "key_cert_sign",
    "crl_sign",
    "encipher_only",
    "decipher_only",
)


def new_key(kind: str):
    """A private key for an algorithm of C2PA."""
    if kind == "ed25519":
        return ed25519.Ed25519PrivateKey.generate()
    return rsa.generate_private_key(65537, 2048) if kind == "ps256" else ec.generate_private_key(CURVES[kind]())


def signer(folder: Path, kind: str = "es256", *, days: int = 30) -> dict[str, str]:
    """Write `certificate.pem` and `key.pem`; the setting `provenance.c2pa` that names them.

    `days`: how long the certificate holds; a negative number is one that has ended.
    """
    folder.mkdir(parents=True, exist_ok=True)
    authority, key = ec.generate_private_key(ec.SECP256R1()), new_key(kind)
    chain = [
        certificate("Signer", key, "Authority", authority, days),
        certificate("Authority", authority, None, authority),
    ]
    pem = b"".join(entry.public_bytes(serialization.Encoding.PEM) for entry in chain)
    (folder / "certificate.pem").write_bytes(pem)
    # The traditional form where a key has one, as `openssl ecparam -genkey` writes it.
    form = serialization.PrivateFormat
    (folder / "key.pem").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            form.PKCS8 if kind == "ed25519" else form.TraditionalOpenSSL,
            serialization.NoEncryption(),
        )
    )
    return {"certificate": str(folder / "certificate.pem"), "key": str(folder / "key.pem")}


def certificate(
    name: str, key, issuer: str | None, issuer_key, days: int = 30, *, use=ExtendedKeyUsageOID.EMAIL_PROTECTION
) -> x509.Certificate:
    """A certificate of `name`; that of an authority where there is no issuer."""
    now = datetime.now(UTC)
    uses = dict.fromkeys(USES, False) | {"key_cert_sign" if issuer is None else "digital_signature": True}
    begins = now - timedelta(days=60)
    builder = (
        x509.CertificateBuilder()
        .subject_name(_named(name))
        .issuer_name(_named(issuer or name))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begins)
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.BasicConstraints(issuer is None, None), critical=True)
        .add_extension(x509.KeyUsage(**uses), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False)
    )
    if issuer is not None:
        # RFC 3161: the use of a certificate of time stamps is critical.
        stamps = use == ExtendedKeyUsageOID.TIME_STAMPING
        builder = builder.add_extension(x509.ExtendedKeyUsage([use]), critical=stamps)
    return builder.sign(issuer_key, hashes.SHA256())


@contextmanager
def time_stamps(folder: Path) -> Iterator[str]:
    """The address of an authority of time stamps on this machine: `openssl ts` behind a web server."""
    folder.mkdir(parents=True)
    authority, key = ec.generate_private_key(ec.SECP256R1()), new_key("ps256")
    own = certificate("Stamps", key, "Authority", authority, use=ExtendedKeyUsageOID.TIME_STAMPING)
    for name, data in {
        "own.pem": own.public_bytes(serialization.Encoding.PEM),
        "chain.pem": certificate("Authority", authority, None, authority).public_bytes(serialization.Encoding.PEM),
        "key.pem": key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ),
        "serial": b"01\n",
        "settings": TSA.format(folder=folder).encode(),
    }.items():
        (folder / name).write_bytes(data)

    class Answers(BaseHTTPRequestHandler):
        def do_POST(self):
            (folder / "query").write_bytes(self.rfile.read(int(self.headers["Content-Length"])))
            command = ["openssl", "ts", "-reply", "-config", folder / "settings", "-queryfile", folder / "query"]
            answer = subprocess.run(command, capture_output=True, check=True).stdout
            self.send_response(200)
            self.send_header("Content-Type", "application/timestamp-reply")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Answers) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/stamps"
        server.shutdown()


TSA = """
[tsa]
default_tsa = here
[here]
serial = {folder}/serial
crypto_device = builtin
signer_cert = {folder}/own.pem
certs = {folder}/chain.pem
signer_key = {folder}/key.pem
signer_digest = sha256
default_policy = 1.2.3.4.1
digests = sha256, sha384, sha512
ess_cert_id_alg = sha256
"""


def _named(name: str) -> x509.Name:
    return x509.Name(
        [x509.NameAttribute(NameOID.COMMON_NAME, name), x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Test")]
    )
