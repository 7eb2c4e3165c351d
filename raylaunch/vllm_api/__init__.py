"""vLLM's dialect: its HTTP API, its metrics, its log lines."""
