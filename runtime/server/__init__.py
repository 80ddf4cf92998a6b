"""The server: a scheduler that batches steps of many requests, and HTTP around it. The runtime never imports it."""
