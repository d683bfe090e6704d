"""What every room stands on: retry, concurrency, durable files, redaction, the registry."""
