"""One migration: settings ▸ profile ▸ plan ▸ job ▸ stages ▸ stream ▸ finish ▸ verify ▸ publish."""
