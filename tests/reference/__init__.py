"""Slow, obvious oracles: bytes in, bytes out, one packet at a time, by the letter of the RFCs."""
