from __future__ import annotations

import pytest

from headrace.domain.errors import InvalidSettings
from headrace.transport.oip_grpc.upstream import channel_credentials


def test_a_key_without_its_certificate_is_refused() -> None:
    with pytest.raises(InvalidSettings, match="without the certificate: set both"):
        channel_credentials(None, None, b"key")
