"""Pages that are one HTML file: pictures inside it, and a policy under which it can request nothing."""

import base64
import hashlib

JPEG_PREFIX = "data:image/jpeg;base64,"


def jpeg_address(jpeg: bytes) -> str:
    """The `data:` address that holds a JPEG."""
    return JPEG_PREFIX + base64.b64encode(jpeg).decode()


def content_policy(style: str, script: str = "") -> str:
    """A meta element that allows a page this style, this script and pictures inside it, and nothing else."""
    allowed = f"default-src 'none'; img-src data:; style-src 'sha256-{_digest(style)}'"
    allowed += f"; script-src 'sha256-{_digest(script)}'" if script else ""
    return f'<meta http-equiv="Content-Security-Policy" content="{allowed}">'


def _digest(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
