"""Weight names of other implementations, one table per source."""
