"""Implicit against unrolled: studies, each in a folder and by one command."""
