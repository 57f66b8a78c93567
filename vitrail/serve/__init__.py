"""A server for models (docs/serve.md): batches of requests, limits on what they may ask for, numbers for Prometheus."""
