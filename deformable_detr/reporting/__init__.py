"""One page that says how a run went, where its detector is wrong, and what it was made with."""
