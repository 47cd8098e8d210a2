"""Everything that is tested; no part of what is installed."""
