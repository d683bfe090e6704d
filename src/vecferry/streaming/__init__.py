"""How a collection is streamed: read ▸ transform ▸ dedupe ▸ embed ▸ write, checkpoint, quarantine."""
