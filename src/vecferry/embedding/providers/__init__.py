"""Where vectors come from, one file a provider."""
