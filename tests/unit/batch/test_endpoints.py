from __future__ import annotations

import pytest

from headrace.batch.endpoints import OPENAI_ENDPOINTS, at_openai, parse, streamed, streamed_rows
from headrace.domain.jobs import Target
from headrace.domain.parameters import InvalidParam


def test_an_endpoint_says_the_model_and_the_version() -> None:
    url = "/v2/models/m/infer"
    assert parse(url) == Target(url, "m")
    url = "/v2/models/m/versions/3/infer"
    assert parse(url) == Target(url, "m", "3")


@pytest.mark.parametrize("url", sorted(OPENAI_ENDPOINTS))
def test_rows_of_openais_endpoints_name_their_models(url: str) -> None:
    assert parse(url) == Target(url)


@pytest.mark.parametrize(
    "url", ["", "/v2/models/m", "/v2/models//infer", "/v2/models/m/infer?x=1", "/v1/files"]
)
def test_any_other_is_refused(url: str) -> None:
    with pytest.raises(InvalidParam, match="endpoint"):
        parse(url)


def test_what_rows_cannot_be_for_is_told_with_the_way_out() -> None:
    assert "/v1/embeddings" in at_openai("emb").message
    assert "generate_stream" in streamed("drip").message
    assert streamed("drip").details == at_openai("emb").details == {"param": "endpoint"}
    assert streamed_rows("drip").message in streamed("drip").message
