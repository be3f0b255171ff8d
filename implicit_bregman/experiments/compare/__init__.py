"""Implicit versus unrolled, one row per way to solve and to differentiate: `implicit-bregman compare`."""
