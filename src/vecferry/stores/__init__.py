"""One module or folder per store, both directions in it. `memory` is the one to copy."""
