"""Implicit against unrolled: four studies, each by one command."""
