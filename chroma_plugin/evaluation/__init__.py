"""How good the speech is: similarity, listening tests, spoken dialogue, latency."""
