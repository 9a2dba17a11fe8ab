"""Videos with content credentials, signed by a certificate that is made for the test."""

from __future__ import annotations

import datetime
import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest


def sign(
    path: Path, out: Path, assertions: Mapping[str, Any], *, url: str = "", parent: Path | None = None
) -> Path:
    """A copy of an mp4 with credentials. Skips where the package c2pa is not installed.

    Args:
        path: mp4 to sign.
        out: the copy.
        assertions: label -> data.
        url: where the credentials are said to lie, instead of in the file.
        parent: a file with credentials of its own, from which this one is said to be made.
    """
    c2pa = pytest.importorskip("c2pa", reason="the extra c2pa is not installed")
    said = [{"label": label, "data": data} for label, data in assertions.items()]
    maker = [{"name": "tests", "version": "1"}]
    builder = c2pa.Builder.from_json(json.dumps({"claim_generator_info": maker, "assertions": said}))
    if parent is None:
        builder.set_intent(c2pa.C2paBuilderIntent.CREATE, c2pa.C2paDigitalSourceType.DIGITAL_CAPTURE)
    else:
        builder.set_intent(c2pa.C2paBuilderIntent.EDIT)
        with parent.open("rb") as stream:
            builder.add_ingredient({"relationship": "parentOf"}, "video/mp4", stream)
    if url:
        builder.set_remote_url(url)
        builder.set_no_embed()
    certificates, key = _identity()
    info = c2pa.C2paSignerInfo(c2pa.C2paSigningAlg.ES256, certificates, key, None)
    builder.sign_file(str(path), str(out), c2pa.Signer.from_info(info))
    return out


@functools.cache
def _identity() -> tuple[bytes, bytes]:
    """Certificates, of the signer and of who vouches for it, and the private key, as PEM."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    root_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))

    def certificate(name: str, own: ec.EllipticCurvePrivateKey) -> x509.Certificate:
        names = [
            x509.Name([
                x509.NameAttribute(NameOID.ORGANIZATION_NAME, "tests"),
                x509.NameAttribute(NameOID.COMMON_NAME, common),
            ])
            for common in (name, "root")
        ]  # fmt: skip
        is_root, begin = own is root_key, datetime.datetime(2026, 1, 1)
        unused = dict.fromkeys(
            ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "encipher_only",
             "decipher_only"), False,
        )  # fmt: skip
        usage = x509.KeyUsage(
            digital_signature=not is_root, key_cert_sign=is_root, crl_sign=is_root, **unused
        )
        made = (
            x509.CertificateBuilder(names[1], names[0], own.public_key(), x509.random_serial_number())
            .not_valid_before(begin)
            .not_valid_after(begin + datetime.timedelta(days=36_500))
            .add_extension(x509.BasicConstraints(is_root, None), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(own.public_key()), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(root_key.public_key()), critical=False
            )
            .add_extension(usage, critical=True)
        )
        if not is_root:
            purpose = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION])
            made = made.add_extension(purpose, critical=False)
        return made.sign(root_key, hashes.SHA256())

    pem = serialization.Encoding.PEM
    chain = certificate("signer", key).public_bytes(pem) + certificate("root", root_key).public_bytes(pem)
    kind = serialization.PrivateFormat.PKCS8
    return chain, key.private_bytes(pem, kind, serialization.NoEncryption())
