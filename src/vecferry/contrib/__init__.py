"""What has nothing to do with moving collections, and is useful beside it."""
