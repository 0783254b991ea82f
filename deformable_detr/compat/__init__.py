"""Stand-ins for the packages of others, so that code written for those runs on our operators."""
