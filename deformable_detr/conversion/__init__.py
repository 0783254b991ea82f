"""Other implementations' weights, in and out: names, files, and what their class rows mean."""
