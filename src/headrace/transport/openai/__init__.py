"""OpenAI's API over HTTP, under `/v1`."""
