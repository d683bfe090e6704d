from servers.postgres import postgres, postgres16

__all__ = ["postgres", "postgres16"]
