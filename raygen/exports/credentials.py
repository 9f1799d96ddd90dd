"""C2PA content credentials of exported pictures: who signs them, and that each is signed only once.

A credential is a signed manifest in the picture file, by the C2PA specification 2: the pixels and marks that it was
signed over, the action `c2pa.created` with IPTC's digital source type, the program. The library is c2pa-python.

Two signatures of the same picture differ, as the specification asks for random salts. Every other file of an export is
the same for the same rows, and repeated or parallel attempts of a shard rely on that. So the signed pictures of a shard
are created once, under a name that every attempt knows, and an attempt that finds them takes them.
"""

import io
import os
import re
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa
from pydantic import Field, field_validator

from raygen.core.config import Config
from raygen.core.errors import ConfigError, InfrastructureError, IntegrityError
from raygen.core.hashing import digest
from raygen.core.location import Location, folder_and_name
from raygen.core.version import __version__
from raygen.exports.images import PictureCodec
from raygen.store.filesystem import FileStore
from raygen.store.parquet import from_parquet, to_parquet

if TYPE_CHECKING:
    from cryptography import x509

__all__ = [
    "C2PAConfig",
    "Credentials",
    "PictureSigner",
    "ProvenanceConfig",
    "key_warning",
    "read_credentials",
    "sign_once",
]


VARIABLE: Final = "env:"
#: A key without the lines around it: every DER sequence in base64 begins so.
BARE_KEY: Final = re.compile(r"M[A-Za-z0-9+/]{55,}={0,2}")
#: Without this the library adds a picture of 1,024 px to one of 64.
SETTINGS: Final = {"builder": {"thumbnail": {"enabled": False}}}
#: Media types by codec.
MEDIA: Final[Mapping[PictureCodec, str]] = {"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp"}
#: Algorithms of C2PA by the curve of the key.
CURVES: Final[Mapping[str, str]] = {"secp256r1": "es256", "secp384r1": "es384", "secp521r1": "es512"}


class C2PAConfig(Config):
    """Who signs exported pictures. The key itself is in no setting, and nothing that a run writes names its place."""

    certificate: Location = Field(
        description="PEM file with the certificate of the signer, then those of its issuers, without the root"
    )
    key: str = Field(
        description="PEM file with the private key of the certificate, or env:NAME for an environment variable that "
        "holds the key; each worker reads it itself"
    )
    time_stamps: Location | None = Field(
        None,
        description="http address of an authority (RFC 3161) that stamps each signature with the time, so that it "
        "counts after the certificate has ended; a request for each picture",
    )

    @field_validator("time_stamps")
    @classmethod
    def _is_http(cls, value: str | None) -> str | None:
        if value is not None and not value.startswith(("http://", "https://")):
            raise ValueError("must be an address that begins with http:// or https://")
        return value

    @field_validator("key", mode="before")
    @classmethod
    def _is_a_name(cls, value: object) -> object:
        if not isinstance(value, str) or not value.strip():
            raise ValueError("must be the path of a PEM file, or env:NAME")
        if BARE_KEY.fullmatch("".join(value.split())):
            raise ValueError("is a private key itself; name the file that has it, or env:NAME")
        return value


class ProvenanceConfig(Config):
    """Marks of generated pictures beyond XMP."""

    c2pa: C2PAConfig | None = Field(
        None, description="sign each picture with C2PA content credentials; needs the extra c2pa"
    )


@dataclass(frozen=True)
class Credentials:
    """What a worker needs to sign: the certificates, PEM; the settings `key` and `time_stamps`; a SHA-256.

    `certificates` has nothing else of their file, which may also hold the key. The SHA-256 is that of the signer's
    certificate in DER form, as `openssl x509 -fingerprint -sha256` shows it.
    """

    certificates: bytes
    key: str = field(repr=False)
    sha256: str
    time_stamps: str | None = None

    @property
    def identity(self) -> dict[str, str]:
        """What a run records of them: neither the key, nor where it is."""
        stamps = {} if self.time_stamps is None else {"time_stamps": self.time_stamps}
        return {"certificate_sha256": self.sha256, **stamps}


def read_credentials(config: C2PAConfig) -> Credentials:
    """Read and check the certificate; `ConfigError` where it cannot be read or cannot sign with the key."""
    folder, name = folder_and_name(config.certificate)
    try:
        certificates = FileStore(folder).get(name)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise ConfigError(f"provenance.c2pa.certificate: {config.certificate}: cannot be read ({reason})") from error
    chain = _chain(certificates, config.certificate)
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.serialization import Encoding

    sha256 = chain[0].fingerprint(SHA256()).hex()
    pem = b"".join(certificate.public_bytes(Encoding.PEM) for certificate in chain)
    credentials = Credentials(pem, config.key, sha256, config.time_stamps)
    PictureSigner(credentials).try_out()
    return credentials


def _chain(pem: bytes, name: str) -> "list[x509.Certificate]":
    """The certificates of a PEM file, that of the signer first."""
    try:
        from cryptography import x509
    except ImportError as error:
        raise ConfigError(MISSING) from error
    try:
        return x509.load_pem_x509_certificates(pem)
    except ValueError as error:
        raise ConfigError(f"provenance.c2pa.certificate: {name}: holds no certificate in PEM form") from error


MISSING: Final = "provenance.c2pa needs the package c2pa-python: pip install 'raygen[c2pa]'"


def key_warning(config: C2PAConfig) -> str:
    """What to do where every user of this machine may read the file of the key; empty otherwise."""
    path = os.path.expanduser(config.key.removeprefix("file://"))
    if config.key.startswith(VARIABLE) or not os.stat(path).st_mode & stat.S_IROTH:
        return ""
    return "every user of this machine can read the file of provenance.c2pa.key; chmod 600 it"


class PictureSigner:
    """Signs picture files. Not picklable: each worker makes its own, from `Credentials`.

    `ConfigError` where the library is missing, the key cannot be read on this machine, or is not that of the
    certificate. No message repeats the setting `key`: it might be the key itself, by mistake.
    """

    def __init__(self, credentials: Credentials) -> None:
        try:
            import c2pa
        except ImportError as error:
            raise ConfigError(MISSING) from error
        certificate = _chain(credentials.certificates, "certificate")[0]
        key = _pkcs8(credentials.key, certificate)
        self._c2pa: Any = c2pa
        self._time_stamps = credentials.time_stamps
        try:
            info = c2pa.C2paSignerInfo(_algorithm(certificate), credentials.certificates, key, credentials.time_stamps)
            self._signer: Any = c2pa.Signer.from_info(info)
            self._context: Any = c2pa.Context.from_dict(SETTINGS)
        except c2pa.C2paError as error:
            raise ConfigError(f"provenance.c2pa: the certificate and key cannot sign ({error})") from error

    def sign(self, picture: bytes, codec: PictureCodec, title: str, source: str, method: str | None = None) -> bytes:
        """`picture` with a credential: what it is called, its digital source type, and what made it.

        `method`: another method that made it, in place of raygen.
        """
        agent = {"name": "raygen", "version": __version__}
        maker = agent if method is None else {"name": method}
        action = {"action": "c2pa.created", "digitalSourceType": source, "softwareAgent": maker}
        manifest = {
            "claim_generator_info": [agent],
            "title": title,
            "assertions": [{"label": "c2pa.actions.v2", "data": {"actions": [action]}}],
        }
        signed = io.BytesIO()
        with self._c2pa.Builder(manifest, self._context) as builder:
            builder.sign(self._signer, MEDIA[codec], io.BytesIO(picture), signed)
        return signed.getvalue()

    def try_out(self) -> None:
        """`ConfigError` where a picture cannot be signed, or its signature does not hold."""
        import numpy as np

        from raygen.exports.images import SOURCE_TYPES, encode_picture

        picture = encode_picture(np.zeros((8, 8, 3), np.uint8), "png")
        try:
            signed = self.sign(picture, "png", "trial", SOURCE_TYPES["model"])
            with self._c2pa.Reader(MEDIA["png"], io.BytesIO(signed)) as reader:
                state, found = reader.get_validation_state(), reader.get_validation_results() or {}
        except self._c2pa.C2paError as error:
            parts = "the certificate and key" if self._time_stamps is None else "the certificate, key and time_stamps"
            raise ConfigError(f"provenance.c2pa: {parts} cannot sign ({error})") from error
        if state not in ("Valid", "Trusted"):
            failures = found.get("activeManifest", {}).get("failure", [])
            reasons = ", ".join(sorted({str(entry.get("code")) for entry in failures}))
            raise ConfigError(f"provenance.c2pa: signatures with this certificate are {state}: {reasons}")


def _pkcs8(setting: str, certificate: "x509.Certificate") -> bytes:
    """The key that `setting` names, as PEM in the form PKCS #8; `ConfigError` where it is not that of `certificate`."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import (
        Encoding,
        NoEncryption,
        PrivateFormat,
        PublicFormat,
        load_pem_private_key,
    )

    try:
        if setting.startswith(VARIABLE):
            pem = os.environ[setting.removeprefix(VARIABLE)].encode()
        else:
            with open(os.path.expanduser(setting.removeprefix("file://")), "rb") as file:
                pem = file.read()
    except KeyError:
        raise ConfigError("provenance.c2pa.key: the environment variable that it names is not set here") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "not a path"
        raise ConfigError(f"provenance.c2pa.key: the file that it names cannot be read here ({reason})") from None
    try:
        key = load_pem_private_key(pem, None)
    except (TypeError, ValueError, UnsupportedAlgorithm):  # TypeError: it needs a passphrase
        raise ConfigError("provenance.c2pa.key: holds no private key in PEM form without a passphrase") from None
    own, other = (
        public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        for public in (key.public_key(), certificate.public_key())
    )
    if own != other:
        raise ConfigError("provenance.c2pa.key: is not the key of the certificate, which is the first of its file")
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _algorithm(certificate: "x509.Certificate") -> str:
    """The algorithm of C2PA for the key of a certificate."""
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

    match certificate.public_key():
        case ec.EllipticCurvePublicKey(curve=curve) if curve.name in CURVES:
            return CURVES[curve.name]
        case ed25519.Ed25519PublicKey():
            return "ed25519"
        case rsa.RSAPublicKey():
            return "ps256"
        case other:
            raise ConfigError(
                f"provenance.c2pa.certificate: C2PA has no signatures with a key of the kind {type(other).__name__}; "
                "it has P-256, P-384, P-521, Ed25519 and RSA"
            )


SIGNED: Final = pa.schema([("unsigned", pa.string()), ("image", pa.binary())])


def sign_once(
    signer: PictureSigner,
    pictures: Sequence[tuple[str, bytes]],
    codec: PictureCodec,
    source: str,
    stored: tuple[FileStore, str] | None,
    method: str | None = None,
) -> list[bytes]:
    """The signed files of `pictures` (titles and files), in their order.

    `stored`: where the first attempt to get so far puts them, and where the others take them from; None signs without
    storing. `method`: of `PictureSigner.sign`. `IntegrityError` where what is there was not made of these pictures.
    """
    if stored is not None and (found := _signed_before(*stored, pictures)) is not None:
        return found
    signed = [signer.sign(picture, codec, title, source, method) for title, picture in pictures]
    if stored is None:
        return signed
    table = pa.table({"unsigned": [digest(picture) for _, picture in pictures], "image": signed}, SIGNED)
    storage, name = stored
    if storage.put_once(name, to_parquet(table)):
        return signed
    if (found := _signed_before(storage, name, pictures)) is None:
        raise InfrastructureError(f"{name}: was there and is gone; another command has ended this export meanwhile")
    return found


def _signed_before(storage: FileStore, name: str, pictures: Sequence[tuple[str, bytes]]) -> list[bytes] | None:
    """The signed pictures that another attempt stored; None where there are none."""
    try:
        table = from_parquet(storage.get(name))
    except FileNotFoundError:
        return None
    if table["unsigned"].to_pylist() != [digest(picture) for _, picture in pictures]:
        raise IntegrityError(
            f"{name}: holds signatures of other pictures; another version of a package encodes them differently. "
            "Remove the folder of the export, and run the command again"
        )
    signed: list[bytes] = table["image"].to_pylist()
    return signed
