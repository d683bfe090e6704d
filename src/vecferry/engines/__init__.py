"""How the partitions of a job are executed."""
