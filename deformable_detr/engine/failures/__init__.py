"""Training runs that go wrong: diagnosis, replay, stalls, AP that stays at zero."""
